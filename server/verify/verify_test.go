package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
)

// world is a volume of two groups of three replicas in memory, on nodes a, b and c.
type world struct {
	state *catalog.State

	mu       sync.Mutex
	extents  map[storage.NodeID]map[storage.ExtentIndex]byte // what each node's replicas hold
	step     int                                             // extents that an answer looks at
	answers  map[storage.NodeID]func(Request) (op.VerifyAnswer, error)
	asked    []Request
	proposed []op.Op
	refuse   error // of Propose
	behind   func(op.Op)
	index    uint64
}

// volumeExtents are those of the volume, and stepExtents what a step looks at.
const volumeExtents, stepExtents = 10, 4

func (w *world) Read(_ context.Context, fn func(*catalog.State)) error {
	fn(w.state)
	return nil
}

func newWorld(t *testing.T) (*world, *Verifier) {
	w := &world{extents: map[storage.NodeID]map[storage.ExtentIndex]byte{}, step: stepExtents,
		answers: map[storage.NodeID]func(Request) (op.VerifyAnswer, error){}}
	c := catalogtest.New(t)
	c.Cluster(2)
	w.state = c.Leader
	for i, name := range []string{"b", "c"} {
		store := storage.StoreID{byte(2 + i)}
		n := c.Must(catalog.AddNode{Name: name, Addrs: storage.Addrs{Peer: name + ":7001"}, At: time.Unix(1_800_000_000, 0).UTC(),
			Stores: []storage.Store{{ID: store, CapacityBytes: 1 << 40}}}).Node
		for g := storage.GroupID(1); g <= 2; g++ {
			key := c.Must(catalog.PlanReplica{Group: g, Node: n, Store: store}).Replica
			for _, role := range []storage.ReplicaRole{storage.RoleLearner, storage.RoleVoter} {
				c.Must(catalog.SetReplica{Group: g, Key: key, Role: role})
			}
		}
	}
	c.Must(catalog.CreateVolume{Name: "v", SizeBytes: volumeExtents*storage.ExtentSize - 4096, RequestID: "v", Groups: 2, At: time.Unix(1_800_000_000, 0).UTC()})
	for n := storage.NodeID(1); n <= 3; n++ {
		w.extents[n] = map[storage.ExtentIndex]byte{}
	}
	return w, &Verifier{Catalog: w, Ask: w.ask, Propose: w.propose}
}

func contents(b byte) (c op.Contents) {
	c[0] = b
	return c
}

func (w *world) ask(_ context.Context, node storage.NodeID, r Request) (op.VerifyAnswer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, r)
	if answer := w.answers[node]; answer != nil {
		return answer(r)
	}
	return w.sound(node, r), nil
}

// sound is what a node answers of whose blocks none is bad.
func (w *world) sound(node storage.NodeID, r Request) op.VerifyAnswer {
	if r.Token != 0 {
		x := w.proposed[len(w.proposed)-1].Extent
		return op.VerifyAnswer{Extents: []op.ExtentContents{{Extent: x, Contents: contents(w.extents[node][x]), Index: w.index}}}
	}
	a := op.VerifyAnswer{Next: min(r.First+storage.ExtentIndex(w.step), r.End)}
	for x := r.First; x < a.Next; x++ {
		if b := w.extents[node][x]; b != 0 {
			a.Extents = append(a.Extents, op.ExtentContents{Extent: x, Contents: contents(b)})
			a.Bytes += storage.BlockSize
		}
	}
	return a
}

func (w *world) propose(_ context.Context, group storage.GroupID, o op.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.refuse, o.Validate()); err != nil {
		return err
	}
	w.proposed = append(w.proposed, o)
	w.index++
	if w.behind != nil {
		w.behind(o)
	}
	return nil
}

// run takes steps until the end.
func run(t *testing.T, v *Verifier) (sum api.Verified, steps int) {
	t.Helper()
	for s := (api.VerifyStep{Name: "v"}); ; steps++ {
		got, err := v.VerifyVolume(t.Context(), s)
		if err != nil || steps > 100 {
			t.Fatalf("step %d: %v", steps, err)
		}
		s.ID, s.Group, s.From = got.ID, got.Group, got.From
		sum.Bytes += got.Bytes
		sum.Compared += got.Compared
		sum.Findings = append(sum.Findings, got.Findings...)
		if got.Done {
			return sum, steps + 1
		}
	}
}

// TestSound: all replicas of all groups are asked for all extents, each once, and agree.
//
// Guards: the next group in VerifyVolume; without it the second was not asked.
func TestSound(t *testing.T) {
	w, v := newWorld(t)
	for n := range w.extents {
		for x := range storage.ExtentIndex(volumeExtents) {
			w.extents[n][x] = byte(x%7 + 1)
		}
	}
	got, steps := run(t, v)
	if len(got.Findings) != 0 || got.Bytes != 2*3*volumeExtents*storage.BlockSize || got.Compared != 2*volumeExtents || len(w.proposed) != 0 {
		t.Errorf("%+v; %d entries", got, len(w.proposed))
	}
	if want := 2 * (volumeExtents + stepExtents - 1) / stepExtents; steps != want || len(w.asked) != 3*want {
		t.Errorf("%d steps, %d questions; want %d steps", steps, len(w.asked), want)
	}
	groups := map[storage.GroupID]int{}
	for _, r := range w.asked {
		groups[r.Group]++
	}
	if len(groups) != 2 {
		t.Errorf("asked of groups %v", groups)
	}
}

// TestDifferent: a replica that holds other blocks, or none, is named; without a majority none is.
//
// Guards: alike, and the votes in differ.
func TestDifferent(t *testing.T) {
	for _, c := range []struct {
		name  string
		holds [3]byte
		nodes []storage.NodeID // of the findings
		text  string
	}{
		{"one of three", [3]byte{1, 2, 1}, []storage.NodeID{2}, "than the other 2 replicas"},
		{"one has nothing", [3]byte{1, 1, 0}, []storage.NodeID{3}, "of extent 5"},
		{"one has something", [3]byte{0, 4, 0}, []storage.NodeID{2}, "remove the node"},
		{"all three", [3]byte{1, 2, 3}, []storage.NodeID{0}, "no majority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, v := newWorld(t)
			for i, b := range c.holds {
				w.extents[storage.NodeID(i+1)][5] = b
			}
			got, _ := run(t, v)
			var nodes []storage.NodeID
			for _, f := range got.Findings[:len(got.Findings)/2] { // each group has them
				nodes = append(nodes, f.Node)
				if f.Kind != api.FoundDiffers || f.Extent != 5 || !strings.Contains(f.Text, c.text) {
					t.Errorf("%+v", f)
				}
			}
			if !slices.Equal(nodes, c.nodes) {
				t.Errorf("nodes %v, want %v: %+v", nodes, c.nodes, got.Findings)
			}
		})
	}
}

// TestOneIsFaster: of extents that not all replicas have looked at yet nothing is said in this step.
//
// Guards: compare's bound next; removed once, and replicas were compared at extent 3 that only two have looked at.
func TestOneIsFaster(t *testing.T) {
	w, v := newWorld(t)
	for n := range w.extents {
		w.extents[n][3] = 7
	}
	w.answers[2] = func(r Request) (op.VerifyAnswer, error) {
		r.End = min(r.End, r.First+2)
		return w.sound(2, r), nil
	}
	got, err := v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v"})
	if err != nil || got.From != 2 || got.Compared != 0 || len(w.proposed) != 0 {
		t.Errorf("%+v, %v; %d entries", got, err, len(w.proposed))
	}
}

// TestUnderWrites: replicas that were looked at at different moments are compared at one index, and are found to be the same.
//
// Guards: settle; with differ at once each of these was a difference.
func TestUnderWrites(t *testing.T) {
	w, v := newWorld(t)
	for n := range w.extents {
		w.extents[n][2] = byte(n) // as each has it when it is asked
	}
	w.behind = func(o op.Op) {
		if o.Kind != op.Digest || o.Extent != 2 || o.Seq == 0 {
			t.Errorf("proposed %+v", o)
		}
		for n := range w.extents {
			w.extents[n][2] = 9
		}
	}
	got, err := v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v"})
	if err != nil || len(got.Findings) != 0 || got.Compared != 1 || len(w.proposed) != 1 {
		t.Errorf("%+v, %v; %d entries", got, err, len(w.proposed))
	}
}

// TestNotCompared: when no leader takes the entry, or a replica has not applied it, or they have looked at different ones, it is said that
// replicas were not compared, and not that they differ.
//
// Guards: digests' look at the indexes; removed once, and a difference was told.
func TestNotCompared(t *testing.T) {
	for name, change := range map[string]func(*world){
		"no leader": func(w *world) { w.refuse = storage.E("propose", storage.KindUnavailable, "group 1", nil) },
		"not applied": func(w *world) {
			w.answers[2] = func(r Request) (op.VerifyAnswer, error) {
				if r.Token != 0 {
					return op.VerifyAnswer{}, storage.E("verify", storage.KindUnavailable, "group 1", nil)
				}
				return w.sound(2, r), nil
			}
		},
		"another entry": func(w *world) {
			w.answers[2] = func(r Request) (op.VerifyAnswer, error) {
				a := w.sound(2, r)
				if r.Token != 0 {
					a.Extents[0].Index++
				}
				return a, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, v := newWorld(t)
			w.extents[1][0] = 1
			change(w)
			got, err := v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v"})
			if err != nil || len(got.Findings) != 1 || got.Findings[0].Kind != api.FoundUncompared || got.From != stepExtents {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestAnswers: what replicas find is added up and told with their nodes; one that does not answer, or is busy, has the step taken again; what was
// mended meanwhile is told all the same.
func TestAnswers(t *testing.T) {
	damaged := op.VerifyAnswer{Next: 3, Bytes: 10, Mended: 2, Lost: 1, Waiting: 3, DamagedPages: 4}
	w, v := newWorld(t)
	w.answers[1] = func(Request) (op.VerifyAnswer, error) { return damaged, nil }
	w.answers[3] = func(Request) (op.VerifyAnswer, error) { return op.VerifyAnswer{Next: 5, Lost: 1}, nil }
	got, err := v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v", RateBytes: 5 << 20})
	var told []string
	for _, f := range got.Findings {
		told = append(told, fmt.Sprintf("%s %s", f.Kind, f.NodeName))
	}
	if err != nil || got.From != 3 || got.Mended != 2 || got.Lost != 1 || got.Waiting != 3 || got.DamagedPages != 4 || got.Bytes != 10 ||
		!slices.Equal(told, []string{"lost a", "waiting a", "tables a", "lost c"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if w.asked[0].RateBytes != 5<<20 || w.asked[0].Volume != got.ID {
		t.Errorf("asked %+v", w.asked[0])
	}
	w.answers[2] = func(Request) (op.VerifyAnswer, error) { return op.VerifyAnswer{Busy: true}, nil }
	got, err = v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v", From: 1})
	if err != nil || !got.Busy || got.From != 1 || got.Group != 0 || got.Mended != 2 || got.Lost+got.Bytes != 0 || len(got.Findings) != 0 {
		t.Errorf("busy: %+v, %v", got, err)
	}
	w.answers[2] = func(Request) (op.VerifyAnswer, error) {
		return op.VerifyAnswer{}, storage.E("call", storage.KindUnavailable, "node 2", nil)
	}
	got, err = v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v"})
	if err != nil || got.Busy || got.From != 0 || len(got.Findings) != 1 || got.Findings[0].Kind != api.FoundUnchecked || got.Findings[0].NodeName != "b" {
		t.Errorf("one does not answer: %+v, %v", got, err)
	}
	skip := []api.VerifyReplica{{Group: got.Findings[0].Group, Node: 2}}
	if got, err = v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v", Skip: skip}); err != nil || got.From != 3 {
		t.Errorf("without it: %+v, %v", got, err)
	}
	w.answers[2] = func(Request) (op.VerifyAnswer, error) {
		return op.VerifyAnswer{}, storage.E("call", storage.KindUnsupported, "node 2", errors.New("the method is not known here"))
	}
	_, err = v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v"})
	if !errors.Is(err, storage.ErrUnsupported) || !strings.Contains(err.Error(), "node b") || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("of an earlier release: %v", err)
	}
	for _, s := range []api.VerifyStep{{Name: "w"}, {Name: "v", ID: 99}} {
		if _, err := v.VerifyVolume(t.Context(), s); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if got, err := v.VerifyVolume(t.Context(), api.VerifyStep{Name: "v", Group: 2}); err != nil || !got.Done {
		t.Errorf("behind the last group: %+v, %v", got, err)
	}
}
