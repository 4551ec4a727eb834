package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
)

// settleIdentity finds out who this node is: who it was, the first node of a new cluster, or a new member of one.
func (n *node) settleIdentity(ctx context.Context) error {
	id, err := control.LoadIdentity(vfs.Default, n.catalogDir())
	switch {
	case err == nil:
		n.identity = id
		return n.checkJoin(ctx)
	case !errors.Is(err, storage.ErrNotFound):
		return err
	}
	if err := n.checkEmpty(); err != nil {
		return err
	}
	joins, err := n.config.joins()
	switch {
	case err != nil:
		return err
	case len(joins) > 0:
		err = n.findCluster(ctx, joins)
		n.waits.Store(nil)
		return err
	case n.config.Bootstrap:
		return n.makeCluster()
	}
	return storage.E("start", storage.KindInvalid, "data directory "+n.config.DataDir, errors.New(
		"it is empty. If this node has run before, its disk is not there: mount it. Otherwise start it with --join HOST, to join "+
			"a cluster, or with --bootstrap, to make a new one"))
}

// checkEmpty refuses a directory that has a store in it and does not say of which node: the identity is written before a
// store is made, so part of the directory is missing.
func (n *node) checkEmpty() error {
	if _, err := os.Stat(n.storeDir()); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return storage.E("start", storage.KindIO, n.storeDir(), err)
	}
	return storage.E("start", storage.KindCorrupt, "data directory "+n.config.DataDir, fmt.Errorf(
		"it has a store (%s) and not the file that says which node it is of (%s): bring the catalog directory back, or start with "+
			"an empty data directory and --join HOST", n.storeDir(), filepath.Join(n.catalogDir(), "node.json")))
}

// makeCluster makes this node the first of a new cluster.
func (n *node) makeCluster() error {
	var cluster storage.ClusterID
	if _, err := rand.Read(cluster[:]); err != nil {
		return err
	}
	id, err := control.NewCluster(catalog.Cluster{ID: cluster, HeartbeatTimeout: n.config.HeartbeatTimeout,
		Replicas: n.config.Replicas, Groups: n.config.Groups, CreatedAt: time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := control.SaveIdentity(vfs.Default, n.catalogDir(), id); err != nil {
		return err
	}
	n.identity = id
	n.logger.Info("new cluster", "cluster", cluster, "replicas", n.config.Replicas, "groups", n.config.Groups)
	return nil
}

// checkJoin refuses a data directory that belongs to another cluster than the nodes that --join names. A node that does not
// answer is no reason not to resume.
func (n *node) checkJoin(ctx context.Context) error {
	joins, err := n.config.joins()
	if err != nil || len(joins) == 0 {
		return err
	}
	asker, err := n.stranger()
	if err != nil {
		return err
	}
	defer asker.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, a := range greetAll(ctx, asker, joins) {
		if a.err == nil && !a.who.Cluster.IsZero() && a.who.Cluster != n.identity.Cluster {
			return storage.E("join", storage.KindConflict, a.addr, fmt.Errorf(
				"the data directory %s belongs to another cluster, %v, than the node that answers there, %v: use an empty one to "+
					"join, or leave --join out to resume", n.config.DataDir, n.identity.Cluster, a.who.Cluster))
		}
	}
	return nil
}

// stranger makes a transport that can only ask: it belongs to no cluster.
func (n *node) stranger() (*peer.Transport, error) {
	tlsConfig, err := n.config.peerTLS()
	if err != nil {
		return nil, err
	}
	return peer.New(peer.Config{TLS: tlsConfig, Speaker: n.speaker(), Logger: n.logger})
}

const pendingFile = "store-id.json"

// pendingStore returns the id that the store of a joining node will have.
func (n *node) pendingStore() (id storage.StoreID, err error) {
	path := filepath.Join(n.config.DataDir, pendingFile)
	b, err := os.ReadFile(path)
	if err == nil {
		var s string
		if err = json.Unmarshal(b, &s); err == nil {
			id, err = storage.ParseStoreID(s)
		}
		if err != nil {
			return id, storage.E("read", storage.KindCorrupt, path, err)
		}
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return id, storage.E("read", storage.KindIO, path, err)
	}
	if _, err := rand.Read(id[:]); err != nil {
		return id, err
	}
	return id, durable.WriteFile(path, []byte(fmt.Sprintf("%q\n", id.String())))
}

// storeID is the id for a store that is made now; zero for one that the store chooses.
func (n *node) storeID() storage.StoreID {
	if _, err := os.Stat(filepath.Join(n.config.DataDir, pendingFile)); err != nil {
		return storage.StoreID{}
	}
	id, err := n.pendingStore()
	if err != nil {
		return storage.StoreID{}
	}
	return id
}
