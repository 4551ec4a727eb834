package export

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

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
	open map[*Connection]struct{} // guarded by mu
}

// add enters a connection and returns what takes it out again.
func (c *connections) add(volume string, readOnly bool, peer nbd.Peer) (remove func()) {
	client := "unix socket"
	if a := peer.RemoteAddr; a != nil && a.String() != "" && a.String() != "@" {
		client = a.String()
	}
	entry := &Connection{Volume: volume, Client: client, ReadOnly: readOnly, Since: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*Connection]struct{}{}
	}
	c.open[entry] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, entry)
	}
}

// clientOf names the client of a connection. The name tells apart clients that want a volume for themselves. It is the
// subject of the client's certificate if there is one, else the address that the client connects from. All connections over
// the unix socket are one client. A client may have several connections.
func clientOf(peer nbd.Peer) string {
	if peer.TLS != nil && len(peer.TLS.PeerCertificates) > 0 {
		if subject := peer.TLS.PeerCertificates[0].Subject.String(); subject != "" {
			return cut(subject)
		}
	}
	if peer.RemoteAddr == nil {
		return "unix socket"
	}
	if host, _, err := net.SplitHostPort(peer.RemoteAddr.String()); err == nil {
		return cut(host)
	}
	return "unix socket"
}

// cut makes a name that can be shown of one that a client has chosen, and bounds it. Such a name ends with a checksum of the
// whole, so that two are two.
func cut(name string) string {
	const most = 100
	shown := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, name)
	if shown == name && len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%s...%x", strings.ToValidUTF8(shown[:min(len(shown), most)], ""), sum[:8])
}

// Connections returns who has an export open, the oldest first. It may be called concurrently.
func (b *Backend) Connections() []Connection {
	var list []Connection
	b.connections.mu.Lock()
	for c := range b.connections.open {
		list = append(list, *c)
	}
	b.connections.mu.Unlock()
	slices.SortFunc(list, func(x, y Connection) int {
		return cmp.Or(x.Since.Compare(y.Since), cmp.Compare(x.Client, y.Client))
	})
	return list
}
