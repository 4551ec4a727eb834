package join

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
)

const (
	// seekInterval is the time between two rounds of a node that knows no leader of the catalog.
	seekInterval = time.Second
	// seekPatience bounds a round, maxSeeking its addresses, maxPlacesBytes the answer of a node.
	seekPatience   = 3 * time.Second
	maxSeeking     = 128
	maxPlacesBytes = 1 << 20
)

// Seeker keeps a node that knows no leader of the catalog in touch with the others. Its methods may be called concurrently.
type Seeker struct {
	Peers Peers
	Book  Book
	Addrs []string // of --join
	Self  string   // the peer address of this node, as others see it

	Logger *slog.Logger
}

// Peers is what a Seeker asks of the connections to other nodes. *peer.Transport implements it, and says what its methods promise.
type Peers interface {
	Places() map[storage.NodeID]peer.Place
	Told(places map[storage.NodeID]peer.Place)
	CallAddr(ctx context.Context, addr string, req *peer.Request) (*peer.Response, error)
}

// Book is what the catalog knows of where nodes are. *control.Controller implements it.
type Book interface {
	Leader() storage.NodeID
	Book() map[storage.NodeID]string
}

// Run exchanges places, while this node knows no leader of the catalog, with every node that it knows of and with those that --join
// names, until ctx is done. A leader learns this node's address from the greeting, and connects to it. Nodes that have all moved
// tell one another where the others are.
func (s *Seeker) Run(ctx context.Context) {
	tick := time.NewTicker(seekInterval)
	defer tick.Stop()
	for {
		if s.Book.Leader() == 0 {
			s.once(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Seeker) once(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, seekPatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, addr := range s.addrs() {
		wg.Go(func() { s.exchangePlaces(ctx, addr) })
	}
	wg.Wait()
}

// addrs returns where other nodes may be: as recorded, as heard, and as --join says.
func (s *Seeker) addrs() []string {
	seen := map[string]bool{s.Self: true}
	var addrs []string
	add := func(a string) {
		if a != "" && !seen[a] && len(addrs) < maxSeeking {
			seen[a] = true
			addrs = append(addrs, a)
		}
	}
	for _, a := range s.Addrs {
		add(a)
	}
	places := s.Peers.Places()
	for _, id := range slices.Sorted(maps.Keys(places)) {
		add(places[id].Address)
	}
	book := s.Book.Book()
	for _, id := range slices.Sorted(maps.Keys(book)) {
		add(book[id])
	}
	return addrs
}

// exchangePlaces tells the node at an address where nodes are, and takes in what it knows.
func (s *Seeker) exchangePlaces(ctx context.Context, addr string) {
	body, err := json.Marshal(s.Peers.Places())
	if err != nil {
		return
	}
	resp, err := s.Peers.CallAddr(ctx, addr, &peer.Request{Method: methodPlaces, Payload: [][]byte{body}})
	if err != nil {
		s.Logger.Debug("a node was not asked where the others are", "addr", addr, "error", err)
		return
	}
	defer resp.Release()
	s.takePlaces(resp.Payload)
}

func (s *Seeker) takePlaces(b []byte) {
	if len(b) == 0 || len(b) > maxPlacesBytes {
		return
	}
	places := map[storage.NodeID]peer.Place{}
	if json.Unmarshal(b, &places) != nil || len(places) > catalog.MaxNodes {
		return
	}
	s.Peers.Told(places)
}

// methodPlaces is how nodes ask one another where nodes are.
const methodPlaces = 55

// Register enters the method by which nodes ask where nodes are. To be called before the peers run.
func (s *Seeker) Register(peers *peer.Transport) {
	peers.Handle(methodPlaces, peer.Terms{From: peer.Members | peer.Gateways | peer.Strangers, Order: peer.Concurrent}, s.serve)
}

func (s *Seeker) serve(in *peer.Inbound) {
	body, err := s.answer(in.From, in.Payload)
	if err != nil {
		in.ReplyError(err)
		return
	}
	in.Reply(nil, [][]byte{body})
}

// answer tells a node of the cluster where nodes are, and takes in what it has told. Strangers and gateways learn nothing, and are not
// believed.
func (s *Seeker) answer(from storage.NodeID, told []byte) ([]byte, error) {
	if from == 0 {
		return nil, nil
	}
	s.takePlaces(told)
	body, err := json.Marshal(s.Peers.Places())
	if err != nil {
		return nil, storage.E("tell places", storage.KindInternal, "", err)
	}
	return body, nil
}
