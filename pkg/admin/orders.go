package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/pgsteer/pgsteer/internal/durable"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// ErrBadOrders means that a file of orders cannot be made sense of.
var ErrBadOrders = errors.New("the file of the operator's orders makes no sense")

// ordersVersion is that of the file's form.
const ordersVersion = 1

// maxOrders bounds what is read of the file, in bytes: 256 services of 64
// backends with an order each take some 6 MB.
const maxOrders = 32 << 20

// ordersFile is what the file holds.
type ordersFile struct {
	Version int        `json:"version"`
	Orders  []lb.Order `json:"orders"`
}

// LoadOrders reads the orders that are kept in the file at path; none when
// there is no such file. The error matches ErrBadOrders when the fault is in
// what it holds.
func LoadOrders(path string) ([]lb.Order, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the operator's orders: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxOrders+1))
	if err != nil {
		return nil, fmt.Errorf("reading the operator's orders: %w", err)
	}
	bad := func(format string, args ...any) ([]lb.Order, error) {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadOrders, path, fmt.Errorf(format, args...))
	}
	if len(data) > maxOrders {
		return bad("it is larger than %d bytes", maxOrders)
	}
	var file ordersFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return bad("%w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("it goes on after its end")
	}
	if file.Version != ordersVersion {
		return bad("it has version %d; this program knows %d", file.Version, ordersVersion)
	}
	for i := range file.Orders {
		if err := file.Orders[i].Check(); err != nil {
			return bad("order %d: %w", i, err)
		}
	}
	return file.Orders, nil
}

// SaveOrders keeps the orders in the file at path, which it replaces as a
// whole: whatever happens, the old or the new ones are there.
func SaveOrders(path string, orders []lb.Order) error {
	if orders == nil {
		orders = []lb.Order{}
	}
	data, err := json.MarshalIndent(ordersFile{ordersVersion, orders}, "", "  ")
	if err == nil {
		err = durable.Replace(path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keeping the operator's orders: %w", err)
	}
	return nil
}

// SetAside renames the file at path, so that it is in nobody's way and yet
// there to be looked at, and returns its new name.
func SetAside(path string) (string, error) {
	to := path + ".bad"
	if err := os.Rename(path, to); err != nil {
		return "", fmt.Errorf("setting the operator's orders aside: %w", err)
	}
	return to, nil
}
