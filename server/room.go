package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/noroom"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/datadir"
)

const (
	// roomLook is how often a node that cannot begin for want of room looks whether there is more.
	roomLook = time.Second
	// roomGain is how much more has to be free for another attempt before roomPatience is over. An attempt reads the tables' log anew,
	// and what is free says nothing of quotas.
	roomGain     = 1 << 20
	roomPatience = time.Minute
)

// waiting is a node that belongs to a cluster and cannot begin: its file system is full. A process that ended would have to be started
// again by somebody, and meanwhile the others could not tell it from one that is lost.
type waiting struct {
	dir    datadir.Dir
	free   func() (int64, error)       // bytes of the file system
	lacks  func(why string)            // for people; empty: nothing
	lobby  func(context.Context) error // tells other nodes, until the context is done
	logger *slog.Logger
}

// begin repeats a step of the start until it finds room, or ctx is done. What a step has not written it writes anew the next time, so it
// does not matter which call found the file system full.
func (w waiting) begin(ctx context.Context, step func() error) error {
	err := step()
	if !noroom.Is(err) {
		return err
	}
	why := w.dir.WithoutRoom(err, "the node begins by itself")
	w.logger.Error("the node waits for room, and begins when there is some", "error", why)
	w.lacks(why.Error())
	defer w.lacks("")
	lobby, leave := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer leave()
	wg.Go(func() {
		if err := w.lobby(lobby); err != nil {
			w.logger.Warn("other nodes do not hear why this one does not begin", "error", err)
		}
	})
	for noroom.Is(err) {
		if e := w.more(ctx); e != nil {
			return fmt.Errorf("%w; %w", w.dir.WithoutRoom(err, "start the node again"), e)
		}
		err = step()
	}
	if err == nil {
		w.logger.Info("there is room again, and the node begins")
	}
	return err
}

// more returns when there is more room than at its call, or after roomPatience.
func (w waiting) more(ctx context.Context) error {
	before, err := w.free()
	known := err == nil
	for begun := time.Now(); time.Since(begun) < roomPatience; {
		if err := clock.Sleep(ctx, roomLook); err != nil {
			return err
		}
		if now, err := w.free(); known && err == nil && now >= before+roomGain {
			return nil
		}
	}
	return nil
}

// waiting returns how this node waits for room, once it knows who it is.
func (n *node) waiting() waiting {
	return waiting{dir: n.dir(), free: n.dir().FreeBytes, lacks: n.view.Lack, lobby: n.tellOthers, logger: n.logger}
}

// tellOthers answers nodes that call this one that it waits for room, until ctx is done.
func (n *node) tellOthers(ctx context.Context) error {
	tlsConfig, err := n.config.peerTLS()
	if err != nil {
		return err
	}
	t, err := peer.New(peer.Config{Cluster: n.identity.Cluster, Self: n.identity.Node, Recovery: n.identity.Recovery, TLS: tlsConfig, Speaker: n.speaker, Logger: n.logger})
	if err != nil {
		return err
	}
	return errors.Join(t.Lobby(ctx, n.listeners.peer.(peer.LobbyListener)), t.Close())
}
