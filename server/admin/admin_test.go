package admin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/status"
)

// leading is the catalog on the node that leads it: its copy has what was proposed.
type leading struct{ *catalogtest.Catalog }

func (l leading) Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error) {
	r, err := l.Catalog.Propose(ctx, cmd)
	l.CatchUp()
	return r, err
}

// Reports implements status.Catalog.
func (l leading) Reports(context.Context) (map[storage.NodeID]placement.Heard, error) {
	return map[storage.NodeID]placement.Heard{1: {}}, l.Down
}

func (leading) Term() uint64            { return 1 }
func (leading) NeverLed() bool          { return false }
func (leading) Untold() bool            { return false }
func (leading) WithoutRoom() bool       { return false }
func (leading) Known() []storage.NodeID { return nil }

// noPeers are the connections of a node that is alone.
type noPeers struct{ status.Peers }

func (noPeers) Look(storage.NodeID) peer.Whereabouts { return peer.Whereabouts{} }
func (noPeers) Connected(storage.NodeID) bool        { return false }
func (noPeers) Second() *peer.SecondProcessError     { return nil }

// sound finds every volume that there is sound in one step.
type sound struct{ leading }

func (l sound) VerifyVolume(ctx context.Context, s api.VerifyStep) (out api.Verified, err error) {
	err = l.Read(ctx, func(c *catalog.State) {
		v, ok := c.VolumeByName(s.Name)
		out = api.Verified{ID: v.ID, Done: ok && (s.ID == 0 || s.ID == v.ID)}
	})
	if err == nil && !out.Done {
		err = storage.E("verify", storage.KindNotFound, "volume "+s.Name, nil)
	}
	return out, err
}

// newCluster is what the API sees on node 1, of a catalog with two groups.
func newCluster(t *testing.T) (*Cluster, *catalogtest.Catalog) {
	c := catalogtest.New(t)
	c.Cluster(2)
	return over(c), c
}

func over(c *catalogtest.Catalog) *Cluster {
	return &Cluster{Commands: leading{c}, Desk: leading{c}, Verifier: sound{leading{c}}, View: &status.View{Config: status.Config{Self: 1, Cluster: storage.ClusterID{1}, Catalog: leading{c}, Peers: noPeers{},
		Replicas: func() []status.Replica { return nil }, Store: func() placement.StoreReport { return placement.StoreReport{} },
		Sessions: func() []storage.SessionID { return nil }, Connections: func() []placement.Connection { return nil },
		Refusals: func() []string { return nil }, Serving: func() bool { return true }}}}
}

// TestConformance: the commands, and what is shown of the catalog, keep the promises of api.Cluster.
func TestConformance(t *testing.T) {
	apitest.Conformance(t, func(t *testing.T) api.Cluster {
		c, _ := newCluster(t)
		return c
	})
}

// TestCreateIsARequest: a request without an id gets one. So a proposal that is repeated after a lost answer is not told that the
// name is taken, and another request is.
func TestCreateIsARequest(t *testing.T) {
	c, state := newCluster(t)
	nv := api.NewVolume{Name: "data", SizeBytes: 64 << 20, Groups: 1}
	if _, err := c.CreateVolume(t.Context(), nv); err != nil {
		t.Fatal(err)
	}
	if v, ok := state.Leader.VolumeByName("data"); !ok || v.RequestID == "" {
		t.Errorf("it was made by request %q", v.RequestID)
	}
	if _, err := c.CreateVolume(t.Context(), nv); !errors.Is(err, storage.ErrExists) {
		t.Errorf("made again: %v; want that it exists", err)
	}
}

// TestStripes: a volume is striped over as many groups as are ready, as the leader knows them if this node's copy knows too few.
func TestStripes(t *testing.T) {
	c, state := newCluster(t)
	create := func(name string, groups int) error {
		v, err := c.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: 64 << 20, Groups: groups})
		if err == nil && len(v.Groups) != groups {
			t.Errorf("%s is striped over %d groups, want %d", name, len(v.Groups), groups)
		}
		return err
	}
	if err := create("two", 2); err != nil {
		t.Error(err)
	}
	if err := create("four", 4); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("over four groups of two: %v", err)
	}
	for range 2 {
		g := state.Must(catalog.AddGroup{Group: state.Leader.NextGroup(), Node: 1, Store: storage.StoreID{1}}).Group
		if err := create("four", 4); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("with group %d, which is being made: %v", g, err)
		}
		state.Must(catalog.SetGroupReady{Group: g})
	}
	if err := create("four", 4); err != nil { // the copy knows of two
		t.Error(err)
	}
}

// TestProvisionLimit: requests are held to what the stores hold; whoever says so, and a node without a limit, goes beyond.
func TestProvisionLimit(t *testing.T) {
	const tib = 1 << 40 // the store of the catalog
	for _, limit := range []int{200, 0} {
		c, _ := newCluster(t)
		c.ProvisionLimit = limit
		create := func(name string, bytes int64, over bool) error {
			_, err := c.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: bytes, RequestID: name, Overcommit: over})
			return err
		}
		grow := func(bytes int64, over bool) error {
			_, err := c.ResizeVolume(t.Context(), "a", api.NewSize{Bytes: bytes, Overcommit: over})
			return err
		}
		for _, want := range []struct {
			what string
			err  error
			kind error
		}{
			{"as large as the store", create("a", tib, false), nil},
			{"larger", create("b", tib+4096, false), storage.ErrInvalid},
			{"all together twice as large", create("c", tib, false), nil},
			{"all together larger", create("d", 4096, false), storage.ErrNoSpace},
			{"grown beyond the store", grow(tib+4096, false), storage.ErrInvalid},
			{"larger, and it is said so", create("e", 3*tib, true), nil},
			{"grown, and it is said so", grow(3*tib, true), nil},
		} {
			if limit == 0 {
				want.kind = nil
			}
			if !errors.Is(want.err, want.kind) {
				t.Errorf("limit %d: %s: %v", limit, want.what, want.err)
			}
		}
	}
}

// TestBeforeTheUpgradeIsFinished: volumes are made and grown while some nodes may not know the limits of what is provisioned. Nothing
// is held to the limits then (tried: without the look at the version in force both are refused).
func TestBeforeTheUpgradeIsFinished(t *testing.T) {
	state := catalogtest.New(t)
	state.ClusterIn(0, 2)
	c := over(state)
	c.ProvisionLimit = 100
	if _, err := c.CreateVolume(t.Context(), api.NewVolume{Name: "a", SizeBytes: 2 << 40}); err != nil {
		t.Error(err)
	}
	if _, err := c.ResizeVolume(t.Context(), "a", api.NewSize{Bytes: 3 << 40}); err != nil {
		t.Error(err)
	}
	state.Must(catalog.RaiseVersion{To: catalog.Version})
	state.CatchUp()
	if _, err := c.CreateVolume(t.Context(), api.NewVolume{Name: "b", SizeBytes: 1 << 30}); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("beyond the limit, when all nodes know it: %v", err)
	}
}

// TestMeantVolume: a volume that is named and numbered is meant only while the name is that volume's, as the leader knows it; what
// is not there is detached.
func TestMeantVolume(t *testing.T) {
	c, state := newCluster(t)
	made := state.Must(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 20, At: time.Now().UTC()}).Volume // the copy does not have it
	other := made.ID + 1
	for what, err := range map[string]error{
		"delete another volume of the name": c.DeleteVolume(t.Context(), "v", other),
		"delete one that is not there":      c.DeleteVolume(t.Context(), "w", 0),
		"modify another volume":             func() error { _, err := c.ModifyVolume(t.Context(), "v", other, api.VolumeChange{}); return err }(),
		"attach another volume": func() error {
			_, err := c.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{Name: "v", ID: other}, Holder: storage.Holder{ID: "h", Kind: storage.HolderHost}})
			return err
		}(),
		"attach one by an id that is not there": func() error {
			_, err := c.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{ID: other}, Holder: storage.Holder{ID: "h", Kind: storage.HolderHost}})
			return err
		}(),
	} {
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Detach(t.Context(), api.Detachment{Volume: storage.VolumeRef{Name: "v", ID: other}, HolderID: "h"}); err != nil {
		t.Errorf("detach from another volume: %v", err)
	}
	a, err := c.Attach(t.Context(), api.NewAttachment{Volume: storage.VolumeRef{ID: made.ID}, Holder: storage.Holder{ID: "h", Kind: storage.HolderHost}})
	if err != nil || a.VolumeName != "v" || a.Access != storage.AccessExclusive {
		t.Errorf("attached by id: %+v, %v; want v, exclusively", a, err)
	}
	if err := c.Detach(t.Context(), api.Detachment{Volume: storage.VolumeRef{Name: "v", ID: made.ID}, HolderID: "h"}); err != nil {
		t.Error(err)
	}
	if err := c.DeleteVolume(t.Context(), "v", made.ID); err != nil {
		t.Error(err)
	}
}

// TestRemoveNode: what is refused is told in the words of the request.
func TestRemoveNode(t *testing.T) {
	c, _ := newCluster(t)
	var e *storage.Error
	if err := c.RemoveNode(t.Context(), 1); !errors.As(err, &e) || e.Op != "remove" || e.Kind != storage.KindConflict {
		t.Errorf("a node that is up: %v", err)
	}
	if err := c.RemoveNode(t.Context(), 9); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
}

// TestIntents: what is refused is told in the words of the request, and a plan says the same beforehand; it changes nothing.
func TestIntents(t *testing.T) {
	c, state := newCluster(t)
	refused := func(id storage.NodeID, change api.IntentChange, kind storage.Kind) {
		t.Helper()
		var e *storage.Error
		if err := c.SetNodeIntent(t.Context(), id, change); !errors.As(err, &e) || e.Op != "set intent" || e.Kind != kind {
			t.Errorf("%+v of node %v: %v", change, id, err)
		}
	}
	intent := func() storage.NodeIntent {
		n, _ := state.Leader.Node(1)
		return n.Intent
	}
	refused(1, api.IntentChange{Intent: storage.IntentDrain}, storage.KindConflict) // it is the only one
	refused(9, api.IntentChange{Intent: storage.IntentDrain}, storage.KindNotFound)
	maintenance := func(d time.Duration) api.IntentChange {
		return api.IntentChange{Intent: storage.IntentMaintenance, Until: time.Now().Add(d)}
	}
	refused(1, maintenance(-time.Second), storage.KindInvalid)
	refused(1, maintenance(catalog.MaxMaintenance+time.Hour), storage.KindInvalid)
	for action, want := range map[api.NodeAction]string{api.ActDrain: "join another node", api.ActMaintenance: "", api.ActRemove: "storagectl node drain"} {
		p, err := c.PlanNode(t.Context(), 1, action)
		if err != nil || p.Action != action || p.Node != 1 || (want == "") != (p.Refused == "") || !strings.Contains(p.Refused, want) {
			t.Errorf("plan to %s: %+v, %v", action, p, err)
		}
		if moves := len(p.Moves); action != api.ActMaintenance && moves != 2 || action == api.ActMaintenance && (moves != 0 || len(p.Stopped) != 2) {
			t.Errorf("plan to %s: %+v", action, p)
		}
	}
	if _, err := c.PlanNode(t.Context(), 9, api.ActDrain); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a plan for a node that is not there: %v", err)
	}
	if intent() != storage.IntentServe {
		t.Errorf("a plan was carried out: %s", intent())
	}
	if err := c.SetNodeIntent(t.Context(), 1, maintenance(time.Hour)); err != nil || intent() != storage.IntentMaintenance {
		t.Errorf("the node is to %q: %v", intent(), err)
	}
	if nodes, err := c.Nodes(t.Context()); err != nil || nodes[0].Intent != storage.IntentMaintenance {
		t.Errorf("%+v, %v", nodes, err)
	}
	if err := c.SetNodeIntent(t.Context(), 1, api.IntentChange{From: storage.IntentMaintenance}); err != nil || intent() != storage.IntentServe {
		t.Errorf("the node is to %q: %v", intent(), err)
	}
	state.Down = errors.New("nobody leads")
	if _, err := c.PlanNode(t.Context(), 1, api.ActDrain); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a plan without a leader: %v", err)
	}
}

// TestWhatIsNotKnownIsNotDenied: a node that has not read the catalog since it was started, or whose copy may be old, does not
// say that there is nothing, or no such volume.
func TestWhatIsNotKnownIsNotDenied(t *testing.T) {
	read, state := newCluster(t)
	made, err := read.CreateVolume(t.Context(), api.NewVolume{Name: "v", SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	down := storage.E("ask the catalog", storage.KindUnavailable, "", errors.New("nobody leads it"))
	state.Down, state.Fresh = down, catalog.Freshness{Age: time.Minute}
	unreadState := catalogtest.New(t)
	unreadState.Down, unreadState.Fresh = down, catalog.Freshness{Age: catalog.NeverHeard}
	unread := over(unreadState)
	ctx := t.Context()
	volume := func(c *Cluster, name string) error { _, err := c.Volume(ctx, name); return err }
	attachments := func(c *Cluster) error {
		_, err := c.Attachments(ctx, api.AttachmentFilter{Volume: "v"}, 0, 10)
		return err
	}
	if err := volume(read, "v"); err != nil {
		t.Errorf("a volume that the copy has: %v", err)
	}
	if list, err := read.Volumes(ctx, api.VolumeFilter{}, "", 10); err != nil || len(list) != 1 {
		t.Errorf("the volumes that the copy has: %v, %v", list, err)
	}
	later := made.ID + 1 // of a volume that took the name since
	for what, err := range map[string]error{
		"a volume that the copy does not have":             volume(read, "w"),
		"deleting a volume that the copy may not know yet": read.DeleteVolume(ctx, "v", later),
		"changing one":              func() error { _, err := read.ModifyVolume(ctx, "v", later, api.VolumeChange{}); return err }(),
		"detaching one":             read.Detach(ctx, api.Detachment{Volume: storage.VolumeRef{Name: "w"}, HolderID: "h"}),
		"who has a volume attached": attachments(read),
		"nothing read: a volume":    volume(unread, "v"),
		"nothing read: volumes":     func() error { _, err := unread.Volumes(ctx, api.VolumeFilter{}, "", 10); return err }(),
		"nothing read: nodes":       func() error { _, err := unread.Nodes(ctx); return err }(),
		"nothing read: groups":      func() error { _, err := unread.Groups(ctx); return err }(),
		"nothing read: attachments": attachments(unread),
		"nothing read: events":      func() error { _, err := unread.Events(ctx, api.EventFilter{}); return err }(),
		"nothing read: a volume striped over so many groups": func() error {
			_, err := unread.CreateVolume(ctx, api.NewVolume{Name: "x", SizeBytes: 1 << 20, Groups: 4})
			return err
		}(),
	} {
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v (%v), want it unavailable", what, err, storage.KindOf(err))
		}
	}
	if s, err := unread.Status(ctx); err != nil || s.Health != api.HealthCritical {
		t.Errorf("status: %s, %v", s.Health, err)
	}
	state.Down = storage.E("ask the catalog", storage.KindCanceled, "", context.Canceled)
	if err := volume(read, "w"); !errors.Is(err, storage.ErrCanceled) {
		t.Errorf("whoever asks has left: %v", err)
	}
}
