package main

import (
	"context"
	"strings"
	"testing"
)

func TestDevice(t *testing.T) {
	if _, err := openDevice("no-such-device"); err == nil || err.Error() != "looking up interface no-such-device: no such device" {
		t.Errorf("absent device: %v", err)
	}
	if _, err := openDevice(strings.Repeat("x", 16)); err == nil {
		t.Error("a name that is too long is accepted")
	}
	d, err := openDevice("lo")
	if err != nil {
		t.Skipf("no loopback interface here: %v", err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.check(); err != nil {
		t.Errorf("the device is there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.run(ctx); err != nil {
		t.Errorf("cancelled: %v", err)
	}
	number := d.index
	d.index += 7
	if err := d.run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "interface lo was replaced: its number was ") {
		t.Errorf("replaced device: %v", err)
	}
	d.index, d.name = number, "no-such-device"
	if err := d.run(t.Context()); err == nil || err.Error() != "looking up interface no-such-device: no such device" {
		t.Errorf("vanished device: %v", err)
	}
}
