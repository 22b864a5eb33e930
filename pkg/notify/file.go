package notify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/pgsteer/pgsteer/internal/durable"
)

const (
	// fileVersion is that of the file's form.
	fileVersion = 1
	// maxFile bounds what is read, in bytes: three sinks, 16,384 backends, 200 bytes
	// each.
	maxFile = 16 << 20
)

// file is what outlives the daemon.
type file struct {
	Version int                        `json:"version"`
	Sinks   map[string]map[string]Said `json:"sinks"`
}

// errBadFile means that the file makes no sense.
var errBadFile = errors.New("the notifications' state makes no sense")

// loadFile reads what the sinks were told. No file is none of them.
func loadFile(path string) (map[string]map[string]Said, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the notifications' state: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the notifications' state: %w", err)
	}
	var content file
	d := json.NewDecoder(bytes.NewReader(data))
	switch err := d.Decode(&content); {
	case len(data) > maxFile:
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", errBadFile, path, maxFile)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", errBadFile, path, err)
	case content.Version != fileVersion:
		return nil, fmt.Errorf("%w: %s has version %d; this program knows %d", errBadFile, path, content.Version, fileVersion)
	}
	return content.Sinks, nil
}

// saveFile replaces the file as a whole: whatever happens, the old or the new one
// is there.
func saveFile(path string, sinks map[string]map[string]Said) error {
	data, err := json.MarshalIndent(file{fileVersion, sinks}, "", "  ")
	if err == nil {
		err = durable.Replace(path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keeping the notifications' state: %w", err)
	}
	return nil
}
