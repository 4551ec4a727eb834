// Package catalogtest is a catalog in memory for tests of those who read it and propose to it: its leader, and a node's copy that is
// as old as the test wants.
package catalogtest

import (
	"context"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// Catalog is a leader and a copy of it. It is used by one goroutine at a time.
type Catalog struct {
	Leader, Copy *catalog.State
	Fresh        catalog.Freshness // what is said of the copy
	Down         error             // what whoever asks the leader gets

	t      *testing.T
	log    [][]byte // commands; the copy has applied the first copied
	copied int
}

// New returns a catalog that is empty. Its copy knows node 1 as the leader.
func New(t *testing.T) *Catalog {
	return &Catalog{t: t, Leader: catalog.New(), Copy: catalog.New(), Fresh: catalog.Freshness{Leader: 1}}
}

// Cluster makes a cluster of one node, named a, and so many groups that are ready. The copy has it.
func (c *Catalog) Cluster(groups int) {
	c.t.Helper()
	c.ClusterIn(catalog.Version, groups)
}

// ClusterIn is Cluster with a version in force; 0: none was ever put in force.
func (c *Catalog) ClusterIn(version, groups int) {
	c.t.Helper()
	at, store := time.Unix(1_800_000_000, 0).UTC(), storage.StoreID{1}
	c.Must(catalog.InitCluster{Cluster: catalog.Cluster{ID: storage.ClusterID{1}, Version: version, Replicas: 1, Groups: groups, CreatedAt: at}})
	n := c.Must(catalog.AddNode{Name: "a", Addrs: storage.Addrs{Peer: "a:7001"}, At: at,
		Stores: []storage.Store{{ID: store, CapacityBytes: 1 << 40}}}).Node
	for range groups {
		g := c.Must(catalog.AddGroup{Group: c.Leader.NextGroup(), Node: n, Store: store}).Group
		c.Must(catalog.SetGroupReady{Group: g})
	}
	c.CatchUp()
}

// CatchUp lets the copy apply what the leader has.
func (c *Catalog) CatchUp() {
	for ; c.copied < len(c.log); c.copied++ {
		c.Copy.Apply(uint64(c.copied+1), c.log[c.copied])
	}
}

// Must applies a command that is not refused.
func (c *Catalog) Must(cmd catalog.Command) catalog.Result {
	c.t.Helper()
	r, err := c.apply(cmd)
	if err != nil {
		c.t.Fatalf("%#v: %v", cmd, err)
	}
	return r
}

func (c *Catalog) apply(cmd catalog.Command) (catalog.Result, error) {
	b, err := catalog.Encode(cmd)
	if err != nil {
		return catalog.Result{}, err
	}
	if err := c.Leader.Permits(cmd); err != nil {
		return catalog.Result{}, err
	}
	c.log = append(c.log, b)
	r := c.Leader.Apply(uint64(len(c.log)), b)
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

// Propose does what control.Controller's does.
func (c *Catalog) Propose(_ context.Context, cmd catalog.Command) (catalog.Result, error) {
	if c.Down != nil {
		return catalog.Result{}, c.Down
	}
	return c.apply(cmd)
}

// Attach does what control.Controller's does.
func (c *Catalog) Attach(ctx context.Context, cmd catalog.Attach) (storage.Attachment, error) {
	r, err := c.Propose(ctx, cmd)
	if err != nil {
		return storage.Attachment{}, err
	}
	return *r.Attachment, nil
}

// Detach does what control.Controller's does.
func (c *Catalog) Detach(ctx context.Context, cmd catalog.Detach) error {
	_, err := c.Propose(ctx, cmd)
	return err
}

// View shows the copy.
func (c *Catalog) View(fn func(*catalog.State)) catalog.Freshness {
	fn(c.Copy)
	f := c.Fresh
	f.Index = uint64(c.copied)
	return f
}

// Read shows what the leader has.
func (c *Catalog) Read(_ context.Context, fn func(*catalog.State)) error {
	if c.Down == nil {
		fn(c.Leader)
	}
	return c.Down
}

// Changed returns the copy's index. Nothing tells of the next one.
func (c *Catalog) Changed() (index uint64, next <-chan struct{}) { return uint64(c.copied), nil }
