//go:build !linux

package nbd

import "net"

// hungUp is not known on this system.
func hungUp(net.Conn) bool { return false }
