package status

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
	"github.com/storaged/storaged/server/placement"
)

// world is what a View looks at: a catalog, and connections to other nodes.
type world struct {
	*catalogtest.Catalog
	Peers
	reports                map[storage.NodeID]placement.Heard // nil: the leader does not answer
	neverLed, untold, full bool
	connected              []storage.NodeID
	failed                 string // the store of this node
	replicas               []Replica
	refusals               []string
	second                 *peer.SecondProcessError
}

func (w *world) Reports(context.Context) (map[storage.NodeID]placement.Heard, error) {
	if w.reports == nil {
		return nil, errors.New("the leader does not answer")
	}
	return w.reports, nil
}
func (w *world) Term() uint64                     { return 7 }
func (w *world) NeverLed() bool                   { return w.neverLed }
func (w *world) Untold() bool                     { return w.untold }
func (w *world) WithoutRoom() bool                { return w.full }
func (w *world) Known() []storage.NodeID          { return []storage.NodeID{1, 2} }
func (w *world) Connected(n storage.NodeID) bool  { return slices.Contains(w.connected, n) }
func (w *world) Second() *peer.SecondProcessError { return w.second }
func (w *world) Look(n storage.NodeID) peer.Whereabouts {
	return peer.Whereabouts{Connected: w.Connected(n)}
}

// newWorld has a catalog with one node, 1, and a group, and the view of it.
func newWorld(t *testing.T) (*world, *View) {
	w := &world{Catalog: catalogtest.New(t)}
	w.Cluster(1)
	v := &View{Config: Config{Self: 1, Cluster: storage.ClusterID{1}, Catalog: w, Peers: w, StoreDir: "/data/store",
		Replicas:    func() []Replica { return w.replicas },
		Store:       func() placement.StoreReport { return placement.StoreReport{Failed: w.failed} },
		Sessions:    func() []storage.SessionID { return []storage.SessionID{5} },
		Connections: func() []placement.Connection { return []placement.Connection{{Volume: "v"}} },
		Refusals:    func() []string { return w.refusals }, Serving: func() bool { return true }}}
	v.Run()
	return w, v
}

// TestLook: what is shown rests on the leader's reports; without them on what this node says itself, and on whom it reaches.
func TestLook(t *testing.T) {
	w, v := newWorld(t)
	w.reports = map[storage.NodeID]placement.Heard{1: {Report: placement.NodeReport{Version: "of the leader"}}}
	if p := v.look(t.Context()); p.alone || p.reports[1].Report.Version != "of the leader" || len(p.nodes) != 1 || p.names[1] != "a" || p.self != 1 ||
		p.cluster.ID.IsZero() || len(p.groups) != 1 || p.usable == 0 || p.now.IsZero() {
		t.Errorf("with reports: %+v", p)
	}
	w.reports, w.connected = nil, []storage.NodeID{1}
	if p := v.look(t.Context()); !p.alone || !p.reached[1] || !slices.Equal(p.reports[1].Report.Sessions, []storage.SessionID{5}) || !p.where[1].Connected {
		t.Errorf("without reports: %+v", p)
	}
	if p := v.look(t.Context()); p.catalogFull {
		t.Error("there is room for the catalog's log")
	}
	w.full = true
	if p := v.look(t.Context()); !p.catalogFull {
		t.Error("it is not seen that there is no room for the catalog's log")
	}
	if s, err := v.Status(t.Context()); err != nil || s.ClusterID != v.Cluster || s.CatalogTerm != 7 || s.AnsweredBy != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestStarting: what tells a cluster that was never whole from one that has lost something is the content of the catalog's log,
// and whether other nodes are heard. An old copy does not say that a cluster is starting.
func TestStarting(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *world)
		unborn string // how what is said begins
		want   bool
	}{
		{"a whole cluster", func(*world) {}, "", false},
		{"it has lost its leader", func(w *world) { w.Fresh.Leader = 0 }, "", false},
		{"made, and not led yet", func(w *world) { w.Fresh.Leader, w.neverLed = 0, true }, "this node has made the cluster", true},
		{"made and led", func(w *world) { w.neverLed = true }, "", false},
		{"joined, and not told yet", func(w *world) {
			w.Fresh.Leader, w.untold, w.connected = 0, true, []storage.NodeID{2}
		}, "this node has joined", true},
		{"joined, and connected to itself only", func(w *world) {
			w.Fresh.Leader, w.untold, w.connected = 0, true, []storage.NodeID{1}
		}, "", false},
		{"groups are being made", func(w *world) { makeGroup(w) }, "", true},
		{"groups were being made when the leader was lost", func(w *world) { makeGroup(w); w.Fresh.Leader = 0 }, "", false},
		{"groups are being made, as its disk says", func(w *world) { makeGroup(w); w.Fresh.Age = catalog.NeverHeard }, "", false},
	} {
		w, v := newWorld(t)
		c.change(w)
		unborn := v.unborn(w.Fresh)
		if got := v.Starting(); got != c.want || (unborn == "") != (c.unborn == "") || !strings.HasPrefix(unborn, c.unborn) {
			t.Errorf("%s: starting %v, %q; want %v, %q", c.name, got, unborn, c.want, c.unborn)
		}
	}
}

func makeGroup(w *world) {
	w.Must(catalog.AddGroup{Group: w.Leader.NextGroup(), Node: 1, Store: storage.StoreID{1}})
	w.CatchUp()
}

// TestAttachments: they are listed as the leader knows them, by volume, by holder and in pages.
func TestAttachments(t *testing.T) {
	w, v := newWorld(t)
	at := time.Now().UTC()
	for _, name := range []string{"v", "w"} {
		w.Must(catalog.CreateVolume{Name: name, SizeBytes: 1 << 20, At: at}) // the copy does not have it
		for _, h := range []string{"g", "h"} {
			w.Must(catalog.Attach{Volume: storage.ByName(name), Holder: storage.Holder{ID: h, Kind: storage.HolderHost, Host: h}, Access: storage.AccessShared, At: at})
		}
	}
	for _, c := range []struct {
		f     api.AttachmentFilter
		after storage.AttachmentID
		limit int
		want  string
	}{
		{api.AttachmentFilter{}, 0, 9, "v:g v:h w:g w:h"},
		{api.AttachmentFilter{}, 0, 3, "v:g v:h w:g"},
		{api.AttachmentFilter{}, 3, 3, "w:h"},
		{api.AttachmentFilter{Volume: "w"}, 0, 9, "w:g w:h"},
		{api.AttachmentFilter{HolderID: "h"}, 0, 9, "v:h w:h"},
		{api.AttachmentFilter{Volume: "w", HolderID: "h"}, 0, 9, "w:h"},
		{api.AttachmentFilter{Volume: "x"}, 0, 9, ""},
	} {
		list, err := v.Attachments(t.Context(), c.f, c.after, c.limit)
		var got []string
		for _, a := range list {
			got = append(got, a.VolumeName+":"+a.Holder.ID)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v after %d: %q, %v; want %q", c.f, c.after, got, err, c.want)
		}
	}
}
