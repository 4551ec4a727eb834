package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/peer/rpc"
)

// Peers is the way to the nodes. *peer.Transport, made with Config.Client, implements it.
type Peers = route.Peers

// API is what is asked of the cluster's API. *client.Client implements it.
type API interface {
	Volume(ctx context.Context, name string) (api.Volume, error)
	Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error)
	Nodes(ctx context.Context) ([]api.Node, error)
}

// Config configures a Cluster. Peers, API, Book, Host and Instance are required.
type Config struct {
	Peers Peers
	API   API
	// Book holds the nodes' addresses; Peers find them there too.
	Book *Book
	// Host is what the cluster knows this host as; Instance is new at every start of its gateway.
	Host, Instance string
	// Machine is where it runs, and Name the host's name, for people.
	Machine storage.Machine
	Name    string
	// Logger receives one line per event an operator would act on; nil discards.
	Logger *slog.Logger
}

// attemptTimeout bounds one question to a node beyond the time that it may take.
const attemptTimeout = 2 * time.Second

// Cluster is what a gateway outside of the nodes sees. It is made by NewCluster and works while Run does. It implements
// volume.Cluster.
type Cluster struct {
	*route.Router
	config Config

	mu       sync.Mutex
	node     storage.NodeID // whom to ask; 0: anyone; guarded by mu
	routes   Routes         // as last heard; guarded by mu
	sessions map[storage.SessionID]bool
	watched  map[Watch]*watched
	answered bool // the last question was answered; guarded by mu
	// again ends the follow request that is under way, for another one with what has changed here; nil before the first. Guarded by mu.
	again context.CancelCauseFunc
}

// watched is a volume that somebody waits for changes of.
type watched struct {
	waiters int
	left    bool               // nobody waited for it when the last follow request was made
	state   volume.VolumeState // Revision 0: not heard yet
	changed chan struct{}      // closed, and replaced, with every new state
}

var _ volume.Cluster = (*Cluster)(nil)

// NewCluster returns a Cluster that knows nothing but the nodes in the book.
func NewCluster(config Config) *Cluster {
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	c := &Cluster{config: config, sessions: map[storage.SessionID]bool{},
		watched: map[Watch]*watched{}}
	c.Router = route.New(route.Config{Peers: config.Peers, Replicas: c.replicasOf})
	return c
}

func (c *Cluster) replicasOf(group storage.GroupID) []storage.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.routes.Groups[group]
}

// Run follows the cluster until ctx is done.
func (c *Cluster) Run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		if err := c.followOnce(ctx); err == nil {
			failures = 0
			continue
		} else if ctx.Err() != nil {
			return
		} else if failures++; failures%8 == 0 { // all nodes were asked; they may have moved
			c.config.Logger.Warn("no node answers this gateway", "attempts", failures, "error", err)
			c.refreshBook(ctx)
		}
		_ = clock.Sleep(ctx, min(time.Duration(failures)*50*time.Millisecond, time.Second)) // the next turn sees the end
	}
}

// refreshBook asks the API, whose addresses are the operator's, for those of the nodes.
func (c *Cluster) refreshBook(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*attemptTimeout)
	defer cancel()
	nodes, err := c.config.API.Nodes(ctx)
	if err != nil {
		c.config.Logger.Warn("the API does not say where the nodes are", "error", err)
		return
	}
	c.config.Book.Set(AddressesOf(nodes))
}

// AddressesOf returns the peer addresses of nodes that were not removed.
func AddressesOf(nodes []api.Node) map[storage.NodeID]string {
	addrs := map[storage.NodeID]string{}
	for _, n := range nodes {
		if n.State != storage.NodeRemoved && n.Addrs.Peer != "" {
			addrs[n.ID] = n.Addrs.Peer
		}
	}
	return addrs
}

// followOnce asks a node what is new, and takes it over. It is cut short when there is something new to say.
func (c *Cluster) followOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := c.followRequest(cancel)
	answer, err := ask(ctx, c, Follow, q, q.Wait)
	if err != nil {
		if errors.Is(context.Cause(ctx), errSoon) {
			return nil
		}
		return err
	}
	c.takeOver(answer)
	return nil
}

var errSoon = errors.New("there is something new to ask")

func (c *Cluster) followRequest(again context.CancelCauseFunc) FollowRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = again
	q := FollowRequest{Host: c.config.Host, Routes: c.routes.Version, Wait: FollowFor}
	q.Sessions = slices.AppendSeq(q.Sessions, maps.Keys(c.sessions))
	for key, w := range c.watched {
		// A caller that goes on watching waits again at once. A volume that nobody waits for twice in a row is left out
		// from then on: a deleted one would be news in every answer, for ever and without a pause.
		if w.waiters == 0 && w.left {
			delete(c.watched, key)
			continue
		}
		w.left = w.waiters == 0
		q.Volumes = append(q.Volumes, Followed{key, w.state.Revision})
	}
	return q
}

func (c *Cluster) takeOver(answer FollowAnswer) {
	c.mu.Lock()
	for _, st := range answer.Volumes {
		if w := c.watched[st.Watch]; w != nil && st.Revision > w.state.Revision {
			w.state = st.VolumeState
			close(w.changed)
			w.changed = make(chan struct{})
		}
	}
	if answer.Routes != nil {
		c.routes = *answer.Routes
	}
	c.mu.Unlock()
	if answer.Routes != nil {
		c.SetHeartbeatTimeout(answer.Routes.HeartbeatTimeout)
		c.config.Book.Set(answer.Routes.Nodes)
	}
}

// askAgainLocked has Run ask again, with what has changed here.
func (c *Cluster) askAgainLocked() {
	if c.again != nil {
		c.again(errSoon)
	}
}

// ask puts a question to the node that answered last, and makes another one the next to be asked if it does not answer.
func ask[Q, A any](ctx context.Context, c *Cluster, m rpc.Method[Q, A], q Q, beyond time.Duration) (answer A, err error) {
	to, err := c.target()
	if err != nil {
		return answer, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout+beyond)
	defer cancel()
	answer, err = m.Call(ctx, c.config.Peers, to, q)
	c.learnNode(to, err)
	return answer, err
}

func (c *Cluster) target() (storage.NodeID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node == 0 {
		c.node = c.config.Book.After(0)
	}
	if c.node == 0 {
		return 0, storage.E("ask a node", storage.KindUnavailable, "", errors.New("no node's address is known yet"))
	}
	return c.node, nil
}

// learnNode makes another node the next to be asked when this one gave no answer, or none that helps.
func (c *Cluster) learnNode(asked storage.NodeID, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, errSoon) {
		return // nobody waited for the answer
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.answered
	switch storage.KindOf(err) {
	case storage.KindUnavailable, storage.KindCanceled, storage.KindNotLeader:
		c.answered = false
		if c.node == asked {
			c.node = c.config.Book.After(asked)
		}
		if before {
			c.config.Logger.Warn("a node does not answer this gateway; the next is asked", "node", asked, "next", c.node, "error", err)
		}
	default:
		c.answered = true
	}
}

// Answered reports whether the last question to a node was answered.
func (c *Cluster) Answered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered
}

// OpenSession implements volume.Cluster.
func (c *Cluster) OpenSession(ctx context.Context, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	info, err := ask(ctx, c, Open, OpenRequest{Volume: name, Host: c.config.Host, Instance: c.config.Instance, Machine: c.config.Machine,
		Name: c.config.Name, Attachment: req.Attachment, After: req.After, ReadOnly: req.ReadOnly}, 0)
	if err != nil {
		return volume.SessionInfo{}, err
	}
	c.mu.Lock()
	c.sessions[info.ID] = true
	c.mu.Unlock()
	return info, nil
}

// CloseSession implements volume.Cluster. The session is not kept alive any more, whatever comes of it: one that the
// catalog has not heard of the close of expires.
func (c *Cluster) CloseSession(ctx context.Context, session storage.SessionID) error {
	c.mu.Lock()
	delete(c.sessions, session)
	c.mu.Unlock()
	_, err := ask(ctx, c, Close, CloseRequest{Host: c.config.Host, Session: session}, 0)
	return err
}

// Attach implements volume.Cluster. A host attaches over the API, and names the attachment when it opens the volume.
func (c *Cluster) Attach(context.Context, string, volume.OpenOptions) (storage.Attachment, error) {
	return storage.Attachment{}, storage.E("attach", storage.KindUnsupported, "", errors.New("the gateway of a host opens volumes under attachments that it has already"))
}

// Detach implements volume.Cluster.
func (c *Cluster) Detach(context.Context, string, storage.Attachment, bool) error { return nil }

// WatchVolume implements volume.Cluster. With after 0 it asks a node.
func (c *Cluster) WatchVolume(ctx context.Context, id storage.VolumeID, attachment storage.AttachmentID, after uint64) (volume.VolumeState, error) {
	key := Watch{id, attachment}
	if after == 0 {
		return c.look(ctx, key)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watched[key]
	if w == nil {
		w = &watched{changed: make(chan struct{})}
		c.watched[key] = w
		c.askAgainLocked()
	}
	w.waiters++
	w.left = false
	defer func() {
		if w.waiters--; w.waiters == 0 && ctx.Err() != nil { // whoever watched has ended; it watches again at once otherwise
			delete(c.watched, key)
		}
	}()
	for w.state.Revision <= after {
		changed := w.changed
		c.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = storage.E("watch", storage.KindCanceled, "volume "+id.String(), ctx.Err())
		}
		c.mu.Lock()
		if err != nil {
			return volume.VolumeState{}, err
		}
	}
	return w.state, nil
}

// look asks a node how a volume is.
func (c *Cluster) look(ctx context.Context, key Watch) (volume.VolumeState, error) {
	c.mu.Lock()
	q := FollowRequest{Host: c.config.Host, Routes: c.routes.Version, Volumes: []Followed{{Watch: key}}, Wait: time.Second / 2}
	c.mu.Unlock()
	for {
		answer, err := ask(ctx, c, Follow, q, q.Wait)
		if err != nil {
			return volume.VolumeState{}, err
		}
		c.takeOver(answer)
		for _, st := range answer.Volumes {
			if st.Watch == key {
				return st.VolumeState, nil
			}
		}
		if answer.Routes == nil {
			return volume.VolumeState{}, storage.E("look at", storage.KindUnavailable, "volume "+key.Volume.String(),
				errors.New("the node does not know the volume yet"))
		}
		q.Routes = answer.Routes.Version
	}
}

// Refresh has the state of all open volumes asked for at once, instead of waiting until the node notices.
func (c *Cluster) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.askAgainLocked()
}

// Volume implements volume.Cluster.
func (c *Cluster) Volume(ctx context.Context, name string) (storage.Volume, error) {
	v, err := c.config.API.Volume(ctx, name)
	return v.Volume, err
}

// Volumes implements volume.Cluster.
func (c *Cluster) Volumes(ctx context.Context) ([]storage.Volume, error) {
	list, err := c.config.API.Volumes(ctx, api.VolumeFilter{}, "", 0)
	if err != nil {
		return nil, err
	}
	out := make([]storage.Volume, 0, len(list))
	for _, v := range list {
		out = append(out, v.Volume)
	}
	return out, nil
}

// Book holds the nodes' peer addresses. Its methods may be called concurrently.
type Book struct {
	mu    sync.Mutex
	addrs map[storage.NodeID]string
	saved func(map[storage.NodeID]string)
}

// NewBook returns a book with these addresses. changed, which may be nil, is called after every change with a copy.
func NewBook(addrs map[storage.NodeID]string, changed func(map[storage.NodeID]string)) *Book {
	return &Book{addrs: maps.Clone(addrs), saved: changed}
}

// Resolve returns a node's address; it is what peer.Config wants.
func (b *Book) Resolve(id storage.NodeID) (addr string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	addr, ok = b.addrs[id]
	return addr, ok
}

// Set replaces all addresses, unless there are none.
func (b *Book) Set(addrs map[storage.NodeID]string) {
	b.mu.Lock()
	changed := len(addrs) > 0 && !maps.Equal(b.addrs, addrs)
	if changed {
		b.addrs = maps.Clone(addrs)
	}
	b.mu.Unlock()
	if changed && b.saved != nil {
		b.saved(maps.Clone(addrs))
	}
}

// Nodes returns the nodes by id.
func (b *Book) Nodes() []storage.NodeID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.addrs))
}

// After returns the node that follows id in the order of ids, the first after the last; 0 in an empty book.
func (b *Book) After(id storage.NodeID) storage.NodeID {
	nodes := b.Nodes()
	if len(nodes) == 0 {
		return 0
	}
	i, _ := slices.BinarySearch(nodes, id+1)
	return nodes[i%len(nodes)]
}

// String lists the addresses, for logs.
func (b *Book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.addrs)
}
