package peer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// Place is where a node said that it is reached, and in which of its starts: of two places that with more starts is the newer.
type Place struct {
	Address string `json:"address"`
	Starts  uint64 `json:"starts"`
}

const (
	// maxPlaces bounds what is remembered of nodes, whoever tells of how many.
	maxPlaces = 1024
	// silence is how long a process keeps silent, before it tries again, when it was told of another process with its identity. Up
	// to the same time is added at random: if two such processes were both refused somewhere, one of them is then first everywhere.
	silence = time.Second
)

// whereabouts is what is known of another node beside what Config.Resolve says; guarded by Transport.mu.
type whereabouts struct {
	heard Speaker   // the process that greeted last, or answered to a greeting
	last  time.Time // when
	told  Place     // what other nodes have told
	// claims are the connections that the process heard.Instance has, in both directions. While there are any, no other process
	// is taken for the node.
	claims  int
	second  Speaker // another process that was refused
	refused time.Time
}

func (t *Transport) placeLocked(node storage.NodeID) *whereabouts {
	w := t.places[node]
	if w == nil && len(t.places) < maxPlaces {
		w = &whereabouts{}
		t.places[node] = w
	}
	return w
}

// claim notes that a connection of a node's process is greeted, and returns the function that notes its end. It returns an error
// with a *SecondProcessError if another process of the node is still connected: that one is the node as long as it is heard.
func (t *Transport) claim(node storage.NodeID, s Speaker) (release func(), err error) {
	t.mu.Lock()
	w := t.placeLocked(node)
	if w == nil || s.Instance == 0 {
		t.mu.Unlock()
		return func() {}, nil
	}
	if w.claims > 0 && w.heard.Instance != s.Instance {
		again := w.second.Instance == s.Instance
		w.second, w.refused = s, time.Now()
		other := w.heard
		t.mu.Unlock()
		if !again {
			t.cfg.Logger.Error("a second process with the identity of a node is refused: stop it, its data directory is a copy", "node", node,
				"second", s.Process, "at", s.Address, "first", other.Process, "first_at", other.Address)
		}
		return nil, storage.E("greet", storage.KindConflict, "node "+node.String(), &SecondProcessError{Node: node, Other: other})
	}
	w.claims++
	moved := s.Address != w.heard.Address || s.Instance != w.heard.Instance
	w.heard, w.last = s, time.Now()
	p := t.peers[node]
	t.mu.Unlock()
	if moved && p != nil {
		p.tryNow()
	}
	return func() {
		t.mu.Lock()
		w.claims--
		t.mu.Unlock()
	}, nil
}

// tryNow forgets that attempts to connect have failed: the node is somewhere else now.
func (p *outPeer) tryNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.retryAt = 0, time.Time{}
}

// address returns where to dial a node for an attempt, after that many have failed: at the places that are known, in turn. The
// node's own word, greeted and so as certain as its identity, comes first; a lie in one of them costs attempts, no more.
func (t *Transport) address(node storage.NodeID, failures int) (string, bool) {
	var list []string
	add := func(a string) {
		if a != "" && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	recorded, _ := t.cfg.Resolve(node)
	t.mu.Lock()
	if w := t.places[node]; w != nil {
		add(w.heard.Address)
		add(recorded)
		add(w.told.Address)
	}
	t.mu.Unlock()
	add(recorded)
	if len(list) == 0 {
		return "", false
	}
	return list[failures%len(list)], true
}

// Places returns where nodes are reached, as they have said themselves or others have told; this node is among them.
func (t *Transport) Places() map[storage.NodeID]Place {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[storage.NodeID]Place, len(t.places)+1)
	for id, w := range t.places {
		switch {
		case w.heard.Address != "":
			out[id] = Place{w.heard.Address, w.heard.Starts}
		case w.told.Address != "":
			out[id] = w.told
		}
	}
	if s := t.cfg.Speaker; t.cfg.Self != 0 && s.Address != "" {
		out[t.cfg.Self] = Place{s.Address, s.Starts}
	}
	return out
}

// Told takes in what another node has told about where nodes are. It is used after what the nodes have said themselves; an older
// start does not replace a later one.
func (t *Transport) Told(places map[storage.NodeID]Place) {
	for _, node := range slices.Sorted(maps.Keys(places)) {
		p := places[node]
		if node == 0 || node == t.cfg.Self || p.Address == "" || len(p.Address) > MaxAddressBytes {
			continue
		}
		t.mu.Lock()
		w := t.placeLocked(node)
		news := w != nil && p != w.told && (w.told.Address == "" || p.Starts > w.told.Starts)
		if news {
			w.told = p
		}
		out := t.peers[node]
		t.mu.Unlock()
		if news && out != nil {
			out.tryNow()
		}
	}
}

// Whereabouts is what this node knows of another one's process, for people.
type Whereabouts struct {
	Speaker                 // the process that greeted last; zero: none since this process started
	Connected bool          // it has connections here, or this node has some there
	Reached   bool          // this node has connections there
	Err       error         // why the last attempt to connect there failed; nil when it did not
	Second    *Speaker      // another process with the node's identity, refused in the last ten seconds
	Since     time.Duration // how long ago it greeted, if it is not connected any more
}

// Look returns what is known of a node.
func (t *Transport) Look(node storage.NodeID) (out Whereabouts) {
	t.mu.Lock()
	if w := t.places[node]; w != nil {
		out.Speaker, out.Connected = w.heard, w.claims > 0
		if w.claims == 0 && !w.last.IsZero() {
			out.Since = time.Since(w.last)
		}
		if !w.refused.IsZero() && time.Since(w.refused) < 10*time.Second {
			second := w.second
			out.Second = &second
		}
	}
	p := t.peers[node]
	t.mu.Unlock()
	if p != nil {
		out.Reached = p.set.Load() != nil
		p.mu.Lock()
		out.Err = p.lastErr
		p.mu.Unlock()
	}
	return out
}

// beSilent is called when the node at an address refuses this process because another one is this node. Nothing of this process may
// count anywhere then: it hangs up everywhere, neither dials nor answers nodes for a moment, and then tries again there first.
func (t *Transport) beSilent(e *SecondProcessError, refuser string) {
	t.mu.Lock()
	if now := time.Now(); now.Sub(t.saidSecond) > 10*time.Second {
		t.saidSecond = now
		t.cfg.Logger.Error("another process has this node's identity and was there before: this one keeps silent. Stop one of them; "+
			"a copied data directory is no second node", "node", e.Node, "other", e.Other.Process, "at", e.Other.Address)
	}
	t.refuser = refuser
	t.second = e
	t.silentUntil = time.Now().Add(silence + time.Duration(t.cfg.Random()%uint64(silence)))
	if !t.asking && !t.closed {
		t.asking = true
		t.wg.Go(t.askRefuser)
	}
	sets := slices.Collect(maps.Values(t.inSets))
	for _, p := range t.peers {
		if s := p.set.Load(); s != nil {
			sets = append(sets, s)
		}
	}
	t.mu.Unlock()
	for _, s := range sets {
		if !s.client {
			s.fail(errSecond)
		}
	}
}

// askRefuser greets the node that refused this process, as soon as the silence is over, until it takes this process or is gone. It
// does not wait for a request to that node: there may be none ever, and others are neither dialled nor answered before.
func (t *Transport) askRefuser() {
	for {
		t.mu.Lock()
		addr, wait := t.refuser, time.Until(t.silentUntil)
		t.asking = addr != "" && t.ctx.Err() == nil
		asking := t.asking
		t.mu.Unlock()
		switch {
		case !asking:
			return
		case wait > 0:
			_ = clock.Sleep(t.ctx, wait)
		default:
			t.askAt(addr)
		}
	}
}

// askAt greets whoever is at an address and hangs up. What came of it is noted as with every greeting.
func (t *Transport) askAt(addr string) {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.DialTimeout)
	defer cancel()
	s := t.newSet(0, addr, t.cfg.Random(), true, true)
	err := t.dialLane(ctx, s, Control)
	t.cfg.Logger.Debug("asked again who refused this process", "addr", addr, "error", err)
	s.fail(errAsked)
	s.run() // closes what was opened
}

var errAsked = errors.New("this node has asked what it wanted to know")

var errSecond = errors.New("another process has this node's identity")

// Second returns why this process keeps silent: another one has this node's identity. nil: it does not. It answers nodes a while
// later than it dials them: whoever dials it may not have heard of the other process.
func (t *Transport) Second() *SecondProcessError {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.second != nil && (t.refuser != "" || time.Now().Before(t.silentUntil.Add(silence))) {
		return t.second
	}
	return nil
}

// silent reports whether this process may dial nobody now.
func (t *Transport) silent() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.silentUntil)
}

// barred reports whether this process may not dial an address: it was refused, and asks who refused it before all others, which may
// not have heard of the other process.
func (t *Transport) barred(addr string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.silentUntil) || t.refuser != "" && t.refuser != addr
}

// dialled notes what came of dialling an address. Who refused this process as a second one has taken it now, or is gone.
func (t *Transport) dialled(addr string, err error) {
	if errors.As(err, new(*SecondProcessError)) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refuser == addr {
		t.refuser = ""
	}
}
