package remote

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication/peer"
)

// deletedPeers are nodes that have deleted every volume they are asked for: each follow request with one is answered at
// once, every other after the time that it allows.
type deletedPeers struct {
	mu    sync.Mutex
	asked int // guarded by mu
}

// Call implements Peers.
func (p *deletedPeers) Call(ctx context.Context, _ storage.NodeID, _ peer.Lane, req *peer.Request) (*peer.Response, error) {
	var q FollowRequest
	if err := json.Unmarshal(req.Payload[0], &q); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.asked++
	revision := uint64(100 + p.asked)
	p.mu.Unlock()
	var a FollowAnswer
	for _, v := range q.Volumes {
		a.Volumes = append(a.Volumes, News{v.Watch, volume.VolumeState{Revision: revision, Deleted: true}})
	}
	pause := time.Millisecond
	if len(a.Volumes) == 0 {
		pause = q.Wait
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	body, err := json.Marshal(a)
	return &peer.Response{Payload: body}, err
}

func (p *deletedPeers) times() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Once a gateway knows that a volume was deleted, it does not ask for it any more: every answer about it would be new,
// and the next question would follow at once. The line is the one in FollowRequest that forgets what nobody waits for;
// without it this test counts some 10,000 questions in ten seconds.
func TestDeletedVolumeIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &deletedPeers{}
		c := NewCluster(Config{Peers: peers, Book: NewBook(map[storage.NodeID]string{1: "a"}, nil), Host: "h", Instance: "i"})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx) })
		st, err := c.WatchVolume(ctx, 7, 3, 1)
		if err != nil || !st.Deleted {
			t.Fatalf("watch: %+v, %v", st, err)
		}
		before := peers.times()
		time.Sleep(10 * time.Second)
		if n := peers.times() - before; n > 20 {
			t.Errorf("%d questions in ten seconds about a volume that is deleted and that nobody watches", n)
		}
		cancel()
		wg.Wait()
	})
}

// A watch that was given up for a moment, as between two calls, goes on from where it was.
func TestWatchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &deletedPeers{}
		c := NewCluster(Config{Peers: peers, Book: NewBook(map[storage.NodeID]string{1: "a"}, nil), Host: "h", Instance: "i"})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx) })
		var revision uint64 = 1
		for range 5 {
			st, err := c.WatchVolume(ctx, 7, 3, revision)
			if err != nil || st.Revision <= revision {
				t.Fatalf("watch after %d: %+v, %v", revision, st, err)
			}
			revision = st.Revision
		}
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		if _, err := c.WatchVolume(short, 8, 3, 1<<40); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("a watch that was given up: %v", err)
		}
		cancel()
		wg.Wait()
	})
}
