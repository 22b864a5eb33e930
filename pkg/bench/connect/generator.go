package connect

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// GeneratorCommand is the first argument that makes a program of this package's
// user into the load generator: it is to call Generate then. The generator is
// a process of its own because all of its threads are in the client's network
// namespace: to switch for every connection would cost more than connecting.
const GeneratorCommand = "generate-connects"

// Generate reads a load.Connects as JSON, runs it and writes the
// load.ConnectsResult.
func Generate(in io.Reader, out io.Writer) error {
	var c load.Connects
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return fmt.Errorf("reading what load to generate: %w", err)
	}
	if err := json.NewEncoder(out).Encode(c.Run(context.Background())); err != nil {
		return fmt.Errorf("writing what became of the load: %w", err)
	}
	return nil
}

// generate runs the load on the lab's client.
func generate(ctx context.Context, l *lab.Lab, c load.Connects) (load.ConnectsResult, error) {
	var result load.ConnectsResult
	program, err := os.Executable()
	if err != nil {
		return result, fmt.Errorf("finding this program: %w", err)
	}
	cmd, err := l.Command(ctx, lab.Client, program, GeneratorCommand)
	if err != nil {
		return result, err
	}
	// Pipes of our own: what is started in a namespace must be started by
	// Start, and Output starts by itself.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return result, fmt.Errorf("talking to the load generator: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return result, fmt.Errorf("talking to the load generator: %w", err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return result, fmt.Errorf("starting the load generator: %w", err)
	}
	writeErr := json.NewEncoder(stdin).Encode(c)
	readErr := json.NewDecoder(stdout).Decode(&result)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return result, ctx.Err()
		}
		return result, fmt.Errorf("running the load generator: %w", err)
	}
	if writeErr != nil {
		return result, fmt.Errorf("telling the load generator what to do: %w", writeErr)
	}
	if readErr != nil {
		return result, fmt.Errorf("reading what became of the load: %w", readErr)
	}
	return result, nil
}
