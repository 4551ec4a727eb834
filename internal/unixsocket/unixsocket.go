// Package unixsocket makes unix sockets at paths where a process that was killed may have left one.
package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// askTime is how long a socket may take to answer whether somebody listens on it.
const askTime = time.Second

// Clear removes the socket at path that a process left behind. It is an error if somebody listens on it, and if there is a file that is no
// socket: neither is touched. Nothing at path is no error.
func Clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is no socket; remove it, or choose another path", path)
	}
	if conn, err := net.DialTimeout("unix", path, askTime); err == nil {
		_ = conn.Close() // nothing was said on it
		return errors.New("another process answers there; stop it, or choose another path")
	}
	return os.Remove(path)
}

// Listen listens at path, in the place of a socket that a process left behind (see Clear), for the owner of this process only.
func Listen(path string) (net.Listener, error) {
	if err := Clear(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
