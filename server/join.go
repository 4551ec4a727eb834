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

const joinRetry = 500 * time.Millisecond

// settleIdentity finds out who this node is: who it was, the first node of a new cluster, or a new member of one.
func (n *node) settleIdentity(ctx context.Context) error {
	id, err := control.LoadIdentity(vfs.Default, n.catalogDir())
	switch {
	case err == nil:
		n.identity = id
		return n.checkJoin(ctx)
	case !errors.Is(err, storage.ErrNotFound):
		return err
	case n.config.Join != "":
		return n.join(ctx)
	default:
		return n.makeCluster()
	}
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

// join asks a node of a cluster for an identity, again and again until it answers or ctx is done. The store's id is
// written down first: a lost answer, or a crash before it was saved, must not make a second node.
func (n *node) join(ctx context.Context) error {
	store, err := n.pendingStore()
	if err != nil {
		return err
	}
	usage, err := vfs.Default.GetDiskUsage(n.config.DataDir)
	if err != nil {
		return storage.E("join", storage.KindIO, n.config.DataDir, err)
	}
	capacity := int64(usage.TotalBytes)
	if n.config.CapacityBytes > 0 {
		capacity = min(capacity, int64(n.config.CapacityBytes))
	}
	asker, err := n.stranger(storage.ClusterID{})
	if err != nil {
		return err
	}
	defer asker.Close()
	for attempt := 0; ; attempt++ {
		response, err := control.Join(ctx, n.self(store, capacity), func(ctx context.Context, body []byte) ([]byte, error) {
			resp, err := asker.CallAddr(ctx, n.config.Join, &peer.Request{Method: peer.MethodJoin, Payload: [][]byte{body}})
			if err != nil {
				return nil, err
			}
			defer resp.Release()
			return append([]byte(nil), resp.Payload...), nil
		})
		if err == nil {
			if n.identity, err = control.SaveJoin(control.Config{Dir: n.catalogDir()}, response); err != nil {
				return err
			}
			n.logger.Info("joined", "cluster", n.identity.Cluster, "node", n.identity.Node)
			return nil
		}
		k := storage.KindOf(err)
		if errors.Is(err, storage.ErrPermission) { // the greeting was refused
			k = storage.KindPermission
		}
		if k != storage.KindUnavailable && k != storage.KindNotLeader && k != storage.KindCanceled {
			return storage.E("join", k, n.config.Join, err)
		}
		if attempt%20 == 0 {
			n.logger.Info("waiting for the cluster to answer", "join", n.config.Join, "error", err)
		}
		select {
		case <-ctx.Done():
			return storage.E("join", storage.KindCanceled, n.config.Join, ctx.Err())
		case <-time.After(joinRetry):
		}
	}
}

// checkJoin refuses a data directory that belongs to another cluster than the one --join names. A node that does not
// answer is no reason not to resume.
func (n *node) checkJoin(ctx context.Context) error {
	if n.config.Join == "" {
		return nil
	}
	asker, err := n.stranger(n.identity.Cluster)
	if err != nil {
		return err
	}
	defer asker.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := asker.CallAddr(ctx, n.config.Join, &peer.Request{Method: peer.MethodNodeInfo})
	if err == nil {
		resp.Release()
		return nil
	}
	if errors.Is(err, storage.ErrPermission) { // the greeting was refused: another cluster answers there
		return storage.E("join", storage.KindConflict, n.config.Join, fmt.Errorf(
			"the data directory %s belongs to another cluster, %s: use an empty one to join, or leave --join out to resume",
			n.config.DataDir, n.identity.Cluster))
	}
	return nil
}

// stranger makes a transport that can only ask.
func (n *node) stranger(cluster storage.ClusterID) (*peer.Transport, error) {
	tlsConfig, err := n.config.peerTLS()
	if err != nil {
		return nil, err
	}
	return peer.New(peer.Config{Cluster: cluster, TLS: tlsConfig, Logger: n.logger})
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
