package export

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/storaged/storaged/nbd"
)

// Connection is a client that has an export open.
type Connection struct {
	Volume   string
	Client   string // its address; "unix socket" for one without
	ReadOnly bool
	Since    time.Time
}

// connections are the open exports of a Backend. The server of connections bounds how many there are.
type connections struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]Connection // guarded by mu, as last
}

// add enters a connection and returns what takes it out again.
func (c *connections) add(volume string, readOnly bool, peer nbd.Peer) (remove func()) {
	client := "unix socket"
	if a := peer.RemoteAddr; a != nil && a.String() != "" && a.String() != "@" {
		client = a.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	id := c.last
	if c.open == nil {
		c.open = map[uint64]Connection{}
	}
	c.open[id] = Connection{Volume: volume, Client: client, ReadOnly: readOnly, Since: time.Now()}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, id)
	}
}

// Connections returns who has an export open, the oldest first. It may be called concurrently.
func (b *Backend) Connections() []Connection {
	b.connections.mu.Lock()
	list := slices.Collect(maps.Values(b.connections.open))
	b.connections.mu.Unlock()
	slices.SortFunc(list, func(x, y Connection) int {
		return cmp.Or(x.Since.Compare(y.Since), cmp.Compare(x.Client, y.Client))
	})
	return list
}
