// Package durable changes files of a process's own so that a crash or a power cut leaves them whole. It is for small state
// beside the data: data directories' stores go through their own file system (replication/extent).
//
// Errors are KindIO, or KindNoSpace where the file system or a quota is full, and name the path. Functions may be called concurrently
// for different paths.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/noroom"
)

// WriteFile replaces a file, or makes it, for the owner only: after a crash it holds the old bytes or the new ones, whole,
// and once WriteFile has returned the new ones. It writes beside it, at path + ".tmp", and leaves nothing there when it fails.
func WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		return SyncDir(filepath.Dir(path))
	}
	_ = os.Remove(tmp) // it takes room, which may be what is wanted
	kind := storage.KindIO
	if noroom.Is(err) {
		kind = storage.KindNoSpace
		err = fmt.Errorf("%w; what it held before is unchanged: make room on its file system, or in the quota, and try again", err)
	}
	return storage.E("write", kind, path, err)
}

// SyncDir makes durable which files a directory holds.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return storage.E("sync", storage.KindIO, dir, err)
	}
	return nil
}
