package diskio

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Replace replaces a file, or makes it: after a crash it holds the old bytes or the new ones, whole, and once Replace has returned
// the new ones. It writes beside the file, under the given ending, leaves nothing there when it fails, and may block a thread.
func Replace(fs vfs.FS, path, ending string, data []byte) error {
	f, err := fs.Create(path+ending, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fs.Rename(path+ending, path)
	}
	if err != nil {
		_ = fs.Remove(path + ending) // it takes room, which may be what is wanted
		return err
	}
	return SyncDir(fs, fs.PathDir(path))
}
