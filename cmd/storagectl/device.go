package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
)

// device is a volume's bytes as import, export and bench use them. Its methods may be called concurrently.
type device interface {
	SizeBytes() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	// WriteZeroes makes n bytes read as zeroes and gives their room back.
	WriteZeroes(ctx context.Context, off, n int64) error
	// Runs describes a prefix of the n bytes at off, at least one byte of it: in turn what may hold data and what
	// reads as zeroes. They do not reach beyond off+n.
	Runs(ctx context.Context, off, n int64) ([]stretch, error)
	Flush(ctx context.Context) error
	Close() error
}

// stretch is a piece of a volume.
type stretch struct {
	bytes int64
	zero  bool
}

// nbdPort is where nodes serve NBD unless they are told otherwise.
const nbdPort = "10809"

// nbdDevice is a device over one or more NBD connections to one server.
type nbdDevice struct {
	clients []*nbd.Client
	next    atomic.Uint64
	status  bool // the server knows base:allocation
}

// openNBD connects to the export that t names, with as many connections as t says if the server allows several.
func openNBD(ctx context.Context, t target) (device, error) {
	config := nbd.ClientConfig{Network: "tcp", Export: t.volume, TLS: t.tls, Contexts: []string{nbd.ContextAllocation}}
	if path, ok := strings.CutPrefix(t.address, "unix:"); ok {
		config.Network, config.Address = "unix", path
	} else if host, port, err := net.SplitHostPort(t.address); err == nil {
		config.Address = net.JoinHostPort(host, port)
	} else {
		config.Address = net.JoinHostPort(strings.Trim(t.address, "[]"), nbdPort)
	}
	if t.tls != nil && t.tls.ServerName == "" {
		config.TLS = t.tls.Clone()
		config.TLS.ServerName, _, _ = net.SplitHostPort(config.Address)
	}
	d := &nbdDevice{}
	for range max(t.connections, 1) {
		c, err := nbd.Dial(ctx, config)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.clients = append(d.clients, c)
		if !c.Info().MultiConn {
			break
		}
	}
	d.status = slices.Contains(d.clients[0].Info().Contexts, nbd.ContextAllocation)
	return d, nil
}

// client spreads requests over the connections.
func (d *nbdDevice) client() *nbd.Client {
	return d.clients[d.next.Add(1)%uint64(len(d.clients))]
}

// SizeBytes implements device.
func (d *nbdDevice) SizeBytes() int64 { return int64(d.clients[0].Info().SizeBytes) }

// ReadAt implements device.
func (d *nbdDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.client().ReadAt(ctx, p, off)
}

// WriteAt implements device.
func (d *nbdDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.client().WriteAt(ctx, p, off)
}

// zeroBuffer is what is written where a server cannot write zeroes by itself; nobody changes it.
var zeroBuffer = make([]byte, 1<<20)

// WriteZeroes implements device.
func (d *nbdDevice) WriteZeroes(ctx context.Context, off, n int64) error {
	c := d.client()
	err := c.WriteZeroes(ctx, off, n, false)
	if !errors.Is(err, storage.ErrUnsupported) {
		return err
	}
	for n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		if err := c.WriteAt(ctx, zeroBuffer[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Runs implements device. A server that does not say what is allocated is taken to hold data everywhere.
func (d *nbdDevice) Runs(ctx context.Context, off, n int64) ([]stretch, error) {
	if !d.status {
		return []stretch{{bytes: n}}, nil
	}
	extents, err := d.client().Status(ctx, off, n, nbd.ContextAllocation)
	if err != nil {
		return nil, err
	}
	var runs []stretch
	for _, e := range extents {
		bytes := int64(min(e.LengthBytes, uint64(n)))
		zero := e.Flags&nbd.FlagZero != 0
		if last := len(runs) - 1; last >= 0 && runs[last].zero == zero {
			runs[last].bytes += bytes
		} else if bytes > 0 {
			runs = append(runs, stretch{bytes: bytes, zero: zero})
		}
		n -= bytes
	}
	return runs, nil
}

// Flush implements device. With several connections the server promises that one flush is for all.
func (d *nbdDevice) Flush(ctx context.Context) error { return d.clients[0].Flush(ctx) }

// Close implements device.
func (d *nbdDevice) Close() error {
	var problems []error
	for _, c := range d.clients {
		problems = append(problems, c.Close())
	}
	return errors.Join(problems...)
}
