package server

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/storaged/storaged"
)

// clearSocket removes the unix socket that a killed process left behind. One on which somebody answers is in use.
func clearSocket(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&os.ModeSocket == 0 {
		return nil // nothing to remove: what is wrong with the path, listening will say
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close() // nothing was said on it
		return storage.E("listen", storage.KindInvalid, "--nbd-socket "+path, errors.New("another process answers on it"))
	}
	if err := os.Remove(path); err != nil {
		return storage.E("listen", storage.KindInvalid, "--nbd-socket "+path, err)
	}
	return nil
}
