// Package csitest is a cluster, a host's gateway and a kernel in memory, for tests of the CSI services. The gateway finds in the
// cluster what ControllerPublishVolume did there. What is written to a mounted volume stays on it when it moves to another machine.
//
// Every call to any of them is a step, and a step can be made to fail before it has had its effect or after. A World
// outlives the services that use it, as the real things outlive a driver's process. It stores no data. Everything may be
// used concurrently.
package csitest

import (
	"context"
	"errors"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/api/csi"
)

// When says when a step fails.
type When int

// The outcomes of a step.
const (
	Never When = iota
	// Before: nothing was done.
	Before
	// After: it was done, and the answer lost.
	After
)

// World is a cluster with machines.
type World struct {
	cluster *apitest.Cluster

	mu       sync.Mutex // guards what follows; never held while the cluster is called
	steps    int
	fault    func(step int) When
	content  map[storage.VolumeID]fileSystem // what is on the volumes
	machines int
}

// fileSystem is what a volume holds.
type fileSystem struct {
	fsType    string
	sizeBytes int64
	raw       bool // it is none, but data
}

// New returns a world with an empty cluster and no machines.
func New() *World {
	return &World{cluster: apitest.New(time.Now), content: map[storage.VolumeID]fileSystem{}}
}

// Fail lets fault decide the outcome of every later step, counted from 1; nil ends it.
func (w *World) Fail(fault func(step int) When) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps, w.fault = 0, fault
}

// Steps returns how many steps were made since the last Fail.
func (w *World) Steps() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.steps
}

// Content returns the type and the size of the file system on the volume; empty without one.
func (w *World) Content(id storage.VolumeID) (fsType string, sizeBytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.content[id].fsType, w.content[id].sizeBytes
}

// Write puts data on the volume that is no file system.
func (w *World) Write(id storage.VolumeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.content[id] = fileSystem{raw: true}
}

// Cluster returns the world's cluster without faults, to look at and to change behind the services' back.
func (w *World) Cluster() *apitest.Cluster { return w.cluster }

// step carries do out with the outcome that Fail says.
func (w *World) step(op string, do func() error) error {
	w.mu.Lock()
	w.steps++
	when := Never
	if w.fault != nil {
		when = w.fault(w.steps)
	}
	w.mu.Unlock()
	lost := storage.E(op, storage.KindUnavailable, "", errors.New("a fault of the test"))
	if when == Before {
		return lost
	}
	if err := do(); err != nil || when == Never {
		return err
	}
	return lost
}

// get is step for what returns something.
func get[A any](w *World, op string, do func() (A, error)) (answer A, err error) {
	err = w.step(op, func() error {
		var err error
		answer, err = do()
		return err
	})
	if err != nil {
		var none A
		return none, err
	}
	return answer, nil
}

// Client is a way to the cluster, with faults.
type Client struct {
	*apitest.Cluster
	w *World
}

// Client returns a way to the world's cluster that implements csi.Cluster.
func (w *World) Client() *Client { return &Client{Cluster: w.cluster.Around(w.step), w: w} }

var _ csi.Cluster = (*Client)(nil)

// CreateVolume implements csi.Cluster. As the catalog does, it refuses a request id that made a volume of another size
// or with other limits with KindConflict.
func (c *Client) CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error) {
	return get(c.w, "create", func() (api.Volume, error) {
		made, err := c.w.cluster.CreateVolume(ctx, v)
		if !errors.Is(err, storage.ErrExists) || v.RequestID == "" {
			return made, err
		}
		// With the size, the limits and the labels that the volume has, the same request finds it; a request of somebody else does not.
		have, lookErr := c.w.cluster.Volume(ctx, v.Name)
		if lookErr != nil {
			return made, lookErr
		}
		v.SizeBytes, v.Limits, v.Labels = have.SizeBytes, have.Limits, have.Labels
		if _, again := c.w.cluster.CreateVolume(ctx, v); again == nil {
			return api.Volume{}, storage.E("create", storage.KindConflict, "volume "+v.Name, errors.New("the request id made another one"))
		}
		return made, err
	})
}

// Volumes implements csi.Cluster.
func (c *Client) Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error) {
	return c.Cluster.Volumes(ctx, f, after, all(limit))
}

// Attachments implements csi.Cluster.
func (c *Client) Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error) {
	return c.Cluster.Attachments(ctx, f, after, all(limit))
}

// all turns the limit of csi.Cluster into that of api.Cluster.
func all(limit int) int {
	if limit <= 0 {
		return 1 << 20
	}
	return limit
}
