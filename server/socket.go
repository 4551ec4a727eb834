package server

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/storaged/storaged"
)

// clearSocket removes the unix socket that a killed process left behind. One on which somebody answers is in use. What else
// is wrong with the path, listening will say.
func clearSocket(path string) error {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		return removeDead(path)
	}
	return nil
}

func removeDead(path string) error {
	fail := func(err error) error { return storage.E("listen", storage.KindInvalid, "--nbd-socket "+path, err) }
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close() // nothing was said on it
		return fail(errors.New("another process answers on it"))
	}
	if err := os.Remove(path); err != nil {
		return fail(err)
	}
	return nil
}
