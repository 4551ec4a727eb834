package peer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
)

// Greeting is who answers at an address.
type Greeting struct {
	Cluster storage.ClusterID // zero: it has none yet
	Node    storage.NodeID    // 0: it has no cluster yet
	Speaker
}

// Greet says hello at an address, takes the answer and hangs up. A node without a cluster answers too, and so does this one
// itself. Errors are those of Call; KindPermission: who answers belongs to another cluster.
func (t *Transport) Greet(ctx context.Context, addr string) (Greeting, error) {
	dialCtx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	sent := t.hello(Control, helloLone, 0, t.cfg.Random())
	nc, answer, err := t.dial(dialCtx, addr, sent)
	if err != nil {
		kind := storage.KindUnavailable
		if ctx.Err() != nil {
			kind = storage.KindCanceled
		}
		return Greeting{}, storage.E("greet", kind, addr, &SendError{Err: err})
	}
	nc.Close()
	itself := answer.code == helloWrongNode && answer.from == t.cfg.Self && answer.cluster == t.cfg.Cluster
	if err := answer.refusal(sent); err != nil && answer.code != helloWithoutNodeID && !itself {
		return Greeting{}, storage.E("greet", storage.KindOf(err), addr, err)
	}
	return Greeting{Cluster: answer.cluster, Node: answer.from, Speaker: answer.speaker}, nil
}

// ListHash is what Speaker.List says for a list of addresses: nodes that were given the same one have the same hash.
func ListHash(addrs []string) uint64 {
	sum := sha256.Sum256([]byte(strings.Join(addrs, "\n")))
	return max(1, binary.LittleEndian.Uint64(sum[:]))
}

// LobbyListener is a listener whose Accept can be ended without closing it, as those of TCP.
type LobbyListener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// maxLobby bounds the connections that are greeted in a lobby at once; more wait.
const maxLobby = 64

// Lobby answers, until ctx is done, whoever greets a node that has not begun: that it has no cluster, if it has no id yet, else that
// there is no room on its file system to begin with (ErrWithoutRoom). The listener stays open, for the Transport of the node that it
// becomes. It returns nil, or why the listener failed. A Transport with a listener of its own has begun, and has no lobby: KindInternal.
func (t *Transport) Lobby(ctx context.Context, l LobbyListener) error {
	if t.cfg.Listener != nil {
		return storage.E("answer in the lobby", storage.KindInternal, "", errors.New("this node has begun"))
	}
	woken := make(chan struct{}) // closed by the function below
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = l.SetDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-woken
		}
		_ = l.SetDeadline(time.Time{})
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxLobby)
	for {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil // the wait is over
		}
		if err != nil {
			if t.passing(ctx, err) {
				continue
			}
			return storage.E("accept peers", storage.KindIO, l.Addr().String(), err)
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { nc.Close(); <-slots }()
			if err := t.answerHello(nc, true); err != nil {
				t.cfg.Logger.Debug("a peer was told that this node has not begun yet", "from", nc.RemoteAddr(), "error", err)
			}
		})
	}
}
