// Package join brings a node into a cluster, and finds the other nodes again later. It remembers who the node is, makes a cluster
// together with others that have none, asks to join one, and exchanges the nodes' addresses with others.
//
// What a node without a cluster does next is decided by nextStep, which is pure.
package join

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/datadir"
)

// Config is what a node knows before it knows who it is.
type Config struct {
	Dir       datadir.Dir
	Bootstrap bool
	Addrs     []string        // of --join
	Name      string          // of this node
	Speaker   peer.Speaker    // what its greetings say, see NewSpeaker
	Cluster   catalog.Cluster // what a new cluster is made with: copies, groups and the heartbeat's timeout
	// Asker makes a transport that belongs to no cluster and greets as the speaker.
	Asker func(peer.Speaker) (Asker, error)
	// Lobby is where others greet this node meanwhile.
	Lobby peer.LobbyListener
	// Describe is what the node tells a cluster that is to take it in, with a store of so many bytes; 0: all of the file system.
	Describe      func(store storage.StoreID, capacityBytes int64) catalog.AddNode
	CapacityBytes int64
	// Waits is told what the node waits for, and Failed why it can no longer answer others meanwhile.
	Waits  func(why string)
	Failed func(error)
	Logger *slog.Logger
}

// Asker can only ask: it belongs to no cluster. *peer.Transport implements it, and says what its methods promise.
type Asker interface {
	Greet(ctx context.Context, addr string) (peer.Greeting, error)
	CallAddr(ctx context.Context, addr string, req *peer.Request) (*peer.Response, error)
	Lobby(ctx context.Context, l peer.LobbyListener) error
	Close() error
}

// Settle finds out who this node is: who it was, the first node of a new cluster, or a new member of one. It waits until there is a
// cluster, or ctx is done.
func Settle(ctx context.Context, c Config) (control.Identity, error) {
	id, err := control.LoadIdentity(vfs.Default, c.Dir.Catalog())
	switch {
	case err == nil:
		if err := id.Usable(string(c.Dir)); err != nil {
			return id, err
		}
		return id, c.checkCluster(ctx, id.Cluster)
	case !errors.Is(err, storage.ErrNotFound):
		return id, err
	}
	if err := c.Dir.CheckEmpty(); err != nil {
		return id, err
	}
	switch {
	case len(c.Addrs) > 0:
		return c.findCluster(ctx)
	case c.Bootstrap:
		return c.makeCluster()
	}
	return id, c.Dir.Errorf(storage.KindInvalid, "it is empty. If this node has run before, its disk is not there: mount it. Otherwise "+
		"start it with --join HOST, to join a cluster, or with --bootstrap, to make a new one")
}

// makeCluster makes this node the first of a new cluster.
func (c Config) makeCluster() (id control.Identity, err error) {
	cluster := c.Cluster
	if _, err := rand.Read(cluster.ID[:]); err != nil {
		return id, err
	}
	cluster.CreatedAt = time.Now().UTC()
	if id, err = control.NewCluster(cluster); err != nil {
		return id, err
	}
	if err := control.SaveIdentity(vfs.Default, c.Dir.Catalog(), id); err != nil {
		return id, err
	}
	c.Logger.Info("new cluster", "cluster", cluster.ID, "replicas", cluster.Replicas, "groups", cluster.Groups)
	return id, nil
}

// checkCluster refuses a data directory that belongs to another cluster than the nodes that --join names. A node that does not
// answer is no reason not to resume.
func (c Config) checkCluster(ctx context.Context, cluster storage.ClusterID) error {
	if len(c.Addrs) == 0 {
		return nil
	}
	asker, err := c.Asker(c.Speaker)
	if err != nil {
		return err
	}
	defer asker.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, a := range greetAll(ctx, asker, c.Addrs) {
		if a.err == nil && !a.who.Cluster.IsZero() && a.who.Cluster != cluster {
			return storage.E("join", storage.KindConflict, a.addr, fmt.Errorf(
				"the data directory %s belongs to another cluster, %v, than the node that answers there, %v: use an empty one to "+
					"join, or leave --join out to resume", c.Dir, cluster, a.who.Cluster))
		}
	}
	return nil
}
