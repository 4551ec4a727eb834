package server

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
)

// descriptors are shared out when the node starts: a process has few (RLIMIT_NOFILE), and each client takes one. However many clients
// come, no port can take the descriptors of another port or of the disk, nor the disk those of the ports.
type descriptors struct {
	limit uint64
	// segments and tables are files of the store that are kept open.
	segments, tables int
	// Connections that each port has at a time. http is for metrics, health and the profiler together.
	peers, api, http, nbd int
}

const (
	// maxStoreFiles is how many files of each kind are kept open if there are enough descriptors.
	maxStoreFiles = 256
	// Beside those: the files that are written, the catalog's, connections to other nodes, and what is opened for a moment.
	maxOtherFiles = 128
	// What ports can use.
	maxPeerConnections = 4096
	maxAPIConnections  = 1024
	// leastRoom is for the connections of a small cluster: two other nodes, two gateways, some clients.
	leastRoom = 48
)

// shareDescriptors shares out a limit. nbd is how many NBD clients are wanted, ahead how many segments the log makes ahead of time
// and keeps open.
func shareDescriptors(limit uint64, nbd, ahead int) (d descriptors, err error) {
	quarter := int(min(limit, 1<<20) / 4)
	d = descriptors{limit: limit, segments: min(maxStoreFiles, quarter), tables: min(maxStoreFiles, quarter)}
	room := int(min(limit, 1<<20)) - d.segments - d.tables - min(maxOtherFiles, quarter) - ahead
	if room < leastRoom {
		return d, storage.E("start", storage.KindInvalid, "limit of open files", fmt.Errorf(
			"a process of this node may have %d files and connections open, %w: raise it to %d or more (ulimit -n, LimitNOFILE= in systemd, the runtime's setting for containers)",
			limit, errFewDescriptors, 4*(leastRoom+ahead)))
	}
	d.peers = min(maxPeerConnections, room/3)
	d.api = min(maxAPIConnections, 2*room/9)
	d.http = min(maxHTTPConnections, room/9)
	d.nbd = min(nbd, room-d.peers-d.api-d.http)
	return d, nil
}

var errFewDescriptors = errors.New("which is too few for the disk and other nodes alone")

// shareDescriptors reads the process's limit, which Go has raised to the hard one, and shares it out.
func (n *node) shareDescriptors() (err error) {
	limit := unix.Rlimit{Cur: 1 << 20}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		n.logger.Warn("the limit of open files is not known", "error", err)
	}
	if n.descriptors, err = shareDescriptors(limit.Cur, n.config.NBDConnections, n.config.FreeSegments); err != nil {
		return err
	}
	if d := n.descriptors; d.nbd < n.config.NBDConnections {
		n.logger.Warn("the limit of open files is below what --nbd-max-connections asks for; raise it (LimitNOFILE= in systemd, ulimit -n)",
			"limit", d.limit, "nbd-max-connections", n.config.NBDConnections, "nbd", d.nbd, "api", d.api, "peers", d.peers, "http", d.http)
	}
	return nil
}
