package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// A part is something that serves until its context ends and then returns nil.
type part struct {
	name string
	run  func(context.Context) error
}

// watched is run with its name in the error, and an error where the part ends
// of itself: a daemon that has lost a part must not look alive.
func (p part) watched(ctx context.Context) error {
	err := p.run(ctx)
	switch {
	case err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)):
		return fmt.Errorf("running %s: %w", p.name, err)
	case ctx.Err() == nil:
		return fmt.Errorf("running %s: ended unexpectedly", p.name)
	}
	return nil
}

// runParts runs all parts until ctx ends or one of them fails, and returns the
// first failure. Those of upper are stopped first, and only when they have
// ended are those of lower: upper gives the virtual addresses up, and lower is
// what it stands on.
func runParts(ctx context.Context, upper, lower []part) error {
	base, stopLower := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLower()
	top, stopUpper := context.WithCancel(ctx)
	defer stopUpper()

	below, belowCtx := errgroup.WithContext(base)
	above, aboveCtx := errgroup.WithContext(top)
	for _, p := range lower {
		below.Go(func() error { return p.watched(belowCtx) })
	}
	for _, p := range upper {
		above.Go(func() error { return p.watched(aboveCtx) })
	}
	unregister := context.AfterFunc(belowCtx, stopUpper)
	defer unregister()
	aboveErr := above.Wait()
	stopLower()
	belowErr := below.Wait()
	// When both failed, either may have begun it; both are told.
	return errors.Join(belowErr, aboveErr)
}
