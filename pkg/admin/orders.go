package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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
		err = replaceFile(path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keeping the operator's orders: %w", err)
	}
	return nil
}

// replaceFile writes a file beside the one at path, to disk, and renames it.
func replaceFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes a rename in dir outlive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
