package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/hostport"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// Content is a volume's bytes as import, export and bench use them. Its methods may be called concurrently.
type Content interface {
	SizeBytes() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	// WriteZeroes makes n bytes read as zeroes and gives their room back.
	WriteZeroes(ctx context.Context, off, n int64) error
	// Runs describes a prefix of the n bytes at off, at least one byte of it: in turn what may hold data and what
	// reads as zeroes. They do not reach beyond off+n.
	Runs(ctx context.Context, off, n int64) ([]Stretch, error)
	Flush(ctx context.Context) error
	Close() error
}

// Stretch is a piece of a volume.
type Stretch struct {
	Bytes int64
	Zero  bool
}

// Target says which export to open, and how.
type Target struct {
	Address string // host:port, or "unix:" and a path
	Volume  string
	TLS     *tls.Config // nil: plain
	// Connections share the work on one volume; at least 1.
	Connections int
}

// nbdPort is where nodes serve NBD unless they are told otherwise.
const nbdPort = "10809"

// nbdContent is the Content of a volume over one or more NBD connections to one server.
type nbdContent struct {
	clients []*nbdclient.Client
	next    atomic.Uint64
	status  bool // the server knows base:allocation
}

// Dial connects over NBD to the export that t names, with as many connections as t says if the server allows several.
func Dial(ctx context.Context, t Target) (Content, error) {
	config := nbdclient.Config{Network: "tcp", Export: t.Volume, TLS: t.TLS, Contexts: []string{nbd.ContextAllocation}}
	if path, ok := strings.CutPrefix(t.Address, "unix:"); ok {
		config.Network, config.Address = "unix", path
	} else {
		address, err := hostport.Parse(t.Address, nbdPort)
		if err != nil {
			return nil, storage.E("connect", storage.KindInvalid, "NBD server "+strconv.Quote(t.Address), err)
		}
		config.Address = address
	}
	if t.TLS != nil && t.TLS.ServerName == "" {
		config.TLS = t.TLS.Clone()
		config.TLS.ServerName, _, _ = net.SplitHostPort(config.Address)
	}
	nc := &nbdContent{}
	for range max(t.Connections, 1) {
		c, err := nbdclient.Dial(ctx, config)
		if err != nil {
			return nil, errors.Join(err, nc.Close())
		}
		nc.clients = append(nc.clients, c)
		if !c.Info().MultiConn {
			break
		}
	}
	nc.status = slices.Contains(nc.clients[0].Info().Contexts, nbd.ContextAllocation)
	return nc, nil
}

// client spreads requests over the connections.
func (nc *nbdContent) client() *nbdclient.Client {
	return nc.clients[nc.next.Add(1)%uint64(len(nc.clients))]
}

// SizeBytes implements Content.
func (nc *nbdContent) SizeBytes() int64 { return int64(nc.clients[0].Info().SizeBytes) }

// ReadAt implements Content.
func (nc *nbdContent) ReadAt(ctx context.Context, p []byte, off int64) error {
	return nc.client().ReadAt(ctx, p, off)
}

// WriteAt implements Content.
func (nc *nbdContent) WriteAt(ctx context.Context, p []byte, off int64) error {
	return nc.client().WriteAt(ctx, p, off)
}

// WriteZeroes implements Content.
func (nc *nbdContent) WriteZeroes(ctx context.Context, off, n int64) error {
	c := nc.client()
	err := c.WriteZeroes(ctx, off, n, false)
	if !errors.Is(err, storage.ErrUnsupported) {
		return err
	}
	return eachZeroes(off, n, func(p []byte, off int64) error { return c.WriteAt(ctx, p, off) })
}

// Runs implements Content. A server that does not say what is allocated is taken to hold data everywhere.
func (nc *nbdContent) Runs(ctx context.Context, off, n int64) ([]Stretch, error) {
	if !nc.status {
		return []Stretch{{Bytes: n}}, nil
	}
	extents, err := nc.client().Status(ctx, off, n, nbd.ContextAllocation)
	if err != nil {
		return nil, err
	}
	var runs []Stretch
	for _, e := range extents {
		bytes := int64(min(e.LengthBytes, uint64(n)))
		zero := e.Flags&nbd.FlagZero != 0
		if last := len(runs) - 1; last >= 0 && runs[last].Zero == zero {
			runs[last].Bytes += bytes
		} else if bytes > 0 {
			runs = append(runs, Stretch{Bytes: bytes, Zero: zero})
		}
		n -= bytes
	}
	return runs, nil
}

// Flush implements Content. With several connections the server promises that one flush is for all.
func (nc *nbdContent) Flush(ctx context.Context) error { return nc.clients[0].Flush(ctx) }

// Close implements Content.
func (nc *nbdContent) Close() error {
	var problems []error
	for _, c := range nc.clients {
		problems = append(problems, c.Close())
	}
	return errors.Join(problems...)
}
