package catalog

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
)

// randomCommand draws a command that often makes sense in the state.
func randomCommand(t *rapid.T, s *State) Command {
	small := func(name string) int { return rapid.IntRange(0, 5).Draw(t, name) }
	node := storage.NodeID(small("node"))
	st := storeID(byte(small("store")))
	group := storage.GroupID(small("group"))
	name := rapid.SampledFrom([]string{"a", "b", "c", "-"}).Draw(t, "name")
	size := int64(rapid.IntRange(0, 9).Draw(t, "blocks")) * storage.BlockSize
	at := testTime.Add(time.Duration(small("at")) * time.Second)
	key := storage.ReplicaKey{Store: st, Incarnation: storage.Incarnation(small("incarnation"))}
	if g, ok := s.Group(group); ok && rapid.Bool().Draw(t, "known") {
		key = rapid.SampledFrom(g.Replicas).Draw(t, "replica").Key
	}
	ref := storage.ByName(name)
	if rapid.Bool().Draw(t, "by id") {
		ref = storage.ByID(storage.VolumeID(rapid.IntRange(0, 12).Draw(t, "volume")))
	}
	session := storage.SessionID(rapid.IntRange(0, 20).Draw(t, "session"))
	stores := []storage.Store{{ID: st, CapacityBytes: size}}
	if rapid.Bool().Draw(t, "two stores") {
		stores = append(stores, storage.Store{ID: storeID(byte(10 + small("other"))), CapacityBytes: 1})
	}
	holder := rapid.SampledFrom([]storage.Holder{{ID: "h", Kind: storage.HolderHost}, {ID: "g", Kind: storage.HolderHost}, storage.NBDHolder(1, "x", false),
		storage.NBDHolder(2, "y", false), storage.NBDHolder(2, "y", true)}).Draw(t, "holder")
	attachment := storage.AttachmentID(rapid.IntRange(0, 12).Draw(t, "attachment"))
	switch rapid.IntRange(0, 28).Draw(t, "command") {
	case 0:
		return InitCluster{Cluster{ID: storage.ClusterID{byte(small("cluster"))}, Version: rapid.IntRange(0, Version).Draw(t, "version"), CreatedAt: at}}
	case 27:
		return RaiseVersion{To: rapid.IntRange(1, Version).Draw(t, "to")}
	case 1:
		return AddNode{Name: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "node name"), Addrs: storage.Addrs{Peer: "h:1"}, Stores: stores, At: at}
	case 2:
		return UpdateNode{Node: node, Name: name, Addrs: storage.Addrs{Peer: "h:2"}, Stores: stores}
	case 3:
		return SetNodeState{Node: node, State: rapid.SampledFrom([]storage.NodeState{storage.NodeUp, storage.NodeUp, storage.NodeSuspect, storage.NodeDown, storage.NodeRemoved}).Draw(t, "state"),
			Since: rapid.SampledFrom([]time.Time{{}, at}).Draw(t, "since")}
	case 28:
		intent := rapid.SampledFrom([]storage.NodeIntent{storage.IntentServe, storage.IntentDrain, storage.IntentDrain, storage.IntentMaintenance})
		c := SetNodeIntent{Node: node, Intent: intent.Draw(t, "intent"), From: rapid.SampledFrom([]storage.NodeIntent{"", "", storage.IntentDrain}).Draw(t, "from")}
		if c.Intent == storage.IntentMaintenance {
			c.Until = at
		}
		return c
	case 4:
		return AddGroup{Group: s.NextGroup(), Node: node, Store: st}
	case 5:
		return SetGroupReady{Group: group}
	case 6:
		return PlanReplica{Group: group, Node: node, Store: st}
	case 7:
		return SetReplica{Group: group, Key: key, Role: rapid.SampledFrom([]storage.ReplicaRole{storage.RoleLearner, storage.RoleVoter, storage.RoleLeaving}).Draw(t, "role"),
			Stays: rapid.Bool().Draw(t, "stays")}
	case 8:
		return RemoveReplica{Group: group, Key: key}
	case 9:
		return CreateVolume{Name: name, SizeBytes: size, RequestID: rapid.SampledFrom([]string{"", "r", "q"}).Draw(t, "request"), At: at}
	case 10:
		return ResizeVolume{Volume: ref, SizeBytes: size}
	case 25:
		n := rapid.SampledFrom([]int64{0, storage.MinBytesPerSecond, storage.MinBytesPerSecond + 1}).Draw(t, "limit")
		return SetVolumeLimits{Volume: ref, LimitsChange: storage.LimitsChange{MaxIOPS: rapid.SampledFrom([]*int64{nil, &n}).Draw(t, "iops"), MaxBytesPerSecond: &n}}
	case 26:
		label := rapid.SampledFrom([]string{"k", "l", "example.com/k"})
		return SetVolumeLabels{Volume: ref, LabelChange: storage.LabelChange{Set: map[string]string{label.Draw(t, "set"): rapid.SampledFrom([]string{"", "v"}).Draw(t, "value")},
			Remove: rapid.SliceOfN(label, 0, 2).Draw(t, "remove")}}
	case 11:
		return DeleteVolume{Volume: ref}
	case 12:
		return FinishDelete{Volume: ref.ID}
	case 13, 16, 17:
		gateway := Gateway{Node: node}
		if list := s.Attachments(); len(list) > 0 && rapid.Bool().Draw(t, "attached") {
			a := rapid.SampledFrom(list).Draw(t, "under")
			ref, attachment, gateway = storage.ByID(a.Volume), a.ID, Gateway{Node: a.Holder.Node}
			if a.Holder.Node == 0 {
				gateway.Host = a.Holder.ID
			}
		}
		return OpenSession{Volume: ref, Gateway: gateway, Attachment: attachment, Instance: rapid.SampledFrom([]string{"i", "j"}).Draw(t, "instance"),
			After: session, ReadOnly: rapid.Bool().Draw(t, "read only"), At: at}
	case 14:
		return CloseSession{Session: session}
	case 18, 19, 20:
		access := rapid.SampledFrom([]storage.Access{storage.AccessExclusive, storage.AccessShared, storage.AccessReaders}).Draw(t, "access")
		return Attach{Volume: ref, Holder: holder, Access: access,
			ReadOnly: access == storage.AccessReaders || rapid.IntRange(0, 3).Draw(t, "ro") == 0, TakeOver: rapid.IntRange(0, 2).Draw(t, "take over") == 0,
			IfGeneration: storage.Generation(rapid.IntRange(0, 4).Draw(t, "if generation")), At: at}
	case 21, 22:
		return Detach{Volume: ref, Holder: holder.ID, Attachment: attachment * storage.AttachmentID(rapid.IntRange(0, 1).Draw(t, "one")),
			Closed: rapid.Bool().Draw(t, "closed"), At: at}
	case 23, 24:
		generation := storage.Generation(rapid.IntRange(0, 5).Draw(t, "generation"))
		if list := s.Unfenced(); len(list) > 0 {
			v := rapid.SampledFrom(list).Draw(t, "unfenced")
			return SetFenced{v.ID, v.Generation}
		}
		return SetFenced{ref.ID, generation}
	default:
		return ExpireSessions{Sessions: []storage.SessionID{session, session + 1}}
	}
}

// watch remembers what must never change back.
type watch struct {
	nodes    map[storage.NodeID]time.Time
	volumes  map[storage.VolumeID]storage.Volume
	sessions map[storage.SessionID]Session
	lastIncs map[storage.GroupID]storage.Incarnation
	attached map[storage.AttachmentID]storage.Attachment
	version  int
}

func (w *watch) check(t *rapid.T, s *State) {
	if s.InForce() < w.version {
		t.Fatalf("version %d came after %d", s.InForce(), w.version)
	}
	w.version = s.InForce()
	if v, ok := s.VolumeByName("a"); ok && len(v.Labels) > 0 && s.InForce() < 5 {
		t.Fatalf("labels in version %d", s.InForce())
	}
	for _, n := range s.Nodes() {
		if at, ok := w.nodes[n.ID]; ok && !at.Equal(n.AddedAt) {
			t.Fatalf("node id %v was used twice", n.ID)
		}
		w.nodes[n.ID] = n.AddedAt
	}
	for _, v := range s.Volumes() {
		old, ok := w.volumes[v.ID]
		same := old.Name == v.Name && slices.Equal(old.Groups, v.Groups) && old.CreatedAt.Equal(v.CreatedAt)
		if ok && (!same || v.SizeBytes < old.SizeBytes || v.Generation < old.Generation || v.Fenced < old.Fenced || v.Epoch < old.Epoch || v.Revision < old.Revision) {
			t.Fatalf("volume %+v became %+v", old, v)
		}
		if ok && old.State == storage.VolumeDeleting && v.State != storage.VolumeDeleting {
			t.Fatalf("volume %v came back", v.ID)
		}
		w.volumes[v.ID] = v
	}
	for id := range w.volumes {
		if _, ok := s.Volume(id); !ok && w.volumes[id].State != storage.VolumeDeleting {
			t.Fatalf("volume %v was gone without being deleted", id)
		}
	}
	for _, x := range s.Sessions() {
		old, ok := w.sessions[x.ID]
		if v, _ := s.Volume(x.Volume); !ok && v.Fenced < v.Generation {
			t.Fatalf("session %+v was opened before volume %+v was fenced", x, v)
		}
		if ok && (old.Volume != x.Volume || old.Gateway != x.Gateway || old.Instance != x.Instance || old.State == SessionClosing && x.State == SessionLive) {
			t.Fatalf("session %+v became %+v", old, x)
		}
		w.sessions[x.ID] = x
	}
	now := map[storage.AttachmentID]storage.Attachment{}
	for _, a := range s.Attachments() {
		if old, ok := w.attached[a.ID]; ok && (old.Holder != a.Holder || old.Access != a.Access || old.ReadOnly != a.ReadOnly) {
			t.Fatalf("attachment %+v became %+v", old, a)
		}
		now[a.ID] = a
	}
	for id, old := range w.attached {
		// Guards I2: a writer that was ended against its will stays able to write in the groups until the generation moves
		// or its sessions are closed there.
		v, ok := s.Volume(old.Volume)
		if _, there := now[id]; there || !ok || v.State != storage.VolumeReady || v.Generation > old.Generation {
			continue
		}
		for _, x := range s.SessionsOf(v.ID) {
			if x.Attachment == id && (x.State == SessionLive || old.Access == storage.AccessExclusive) {
				t.Fatalf("attachment %+v ended and left session %+v, the volume is %+v", old, x, v)
			}
		}
	}
	w.attached = now
	for _, g := range s.Groups() {
		if g.LastIncarnation < w.lastIncs[g.ID] {
			t.Fatalf("group %v gives incarnation %d again", g.ID, g.LastIncarnation+1)
		}
		w.lastIncs[g.ID] = g.LastIncarnation
	}
}

// TestRandomCommands: invariants hold after every command. Refused commands change nothing, and a command applied
// twice changes nothing the second time. Two States agree byte for byte, even if one was restored on the way. A Clone
// stays as it was.
func TestRandomCommands(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		w := watch{map[storage.NodeID]time.Time{}, map[storage.VolumeID]storage.Volume{}, map[storage.SessionID]Session{}, map[storage.GroupID]storage.Incarnation{}, nil, 0}
		var index uint64
		lastIDs := [5]uint64{}
		if rapid.Bool().Draw(t, "begun") { // otherwise most commands find no cluster
			for _, c := range []Command{InitCluster{Cluster{ID: storage.ClusterID{1}, Version: rapid.SampledFrom([]int{0, 5, Version}).Draw(t, "made at")}},
				AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(1), CapacityBytes: 1}}},
				AddNode{Addrs: storage.Addrs{Peer: "h:2"}, Stores: []storage.Store{{ID: storeID(2), CapacityBytes: 1}}},
				AddGroup{1, 1, storeID(1)}, SetGroupReady{1},
				CreateVolume{Name: "a", SizeBytes: storage.BlockSize}} {
				raw, err := Encode(c)
				if err != nil {
					t.Fatal(err)
				}
				index++
				a.Apply(index, raw)
				b.Apply(index, raw)
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "commands") {
			c := randomCommand(t, a)
			raw, err := Encode(c)
			if err != nil || a.Initialised() && a.Permits(c) != nil {
				continue // a leader does not bring it into the log
			}
			index++
			before, clone := body(t, a), a.Clone()
			r := a.Apply(index, raw)
			rb := b.Apply(index, raw)
			if x, y := fmt.Sprintf("%+v", view(r)), fmt.Sprintf("%+v", view(rb)); x != y {
				t.Fatalf("two states answer %s and %s", x, y)
			}
			if err := a.Check(); err != nil {
				t.Fatalf("after %+v: %v", c, err)
			}
			w.check(t, a)
			after := body(t, a)
			if err := clone.Check(); err != nil || !bytes.Equal(before, body(t, clone)) {
				t.Fatalf("%+v changed a clone (%v)", c, err)
			}
			if r.Err != nil && !bytes.Equal(before, after) {
				t.Fatalf("%+v (%v) changed\n%s\ninto\n%s", c, r.Err, before, after)
			}
			ids := [5]uint64{uint64(a.lastNode), uint64(a.lastGroup), uint64(a.lastVolume), uint64(a.lastSession), uint64(a.lastAttachment)}
			for i := range ids {
				if ids[i] < lastIDs[i] {
					t.Fatalf("an id counter fell from %v to %v", lastIDs, ids)
				}
			}
			lastIDs = ids
			if r.Err == nil {
				index++
				again := a.Apply(index, raw)
				b.Apply(index, raw)
				if !bytes.Equal(body(t, a), after) {
					t.Fatalf("%+v applied again changed\n%s\ninto\n%s", c, after, body(t, a))
				}
				if again.Err == nil && fmt.Sprintf("%+v", view(again)) != fmt.Sprintf("%+v", view(r)) {
					t.Fatalf("%+v answers %+v, then %+v", c, view(r), view(again))
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "restore") == 0 {
				b = restored(t, b)
			}
		}
		x, _ := a.Snapshot()
		y, _ := b.Snapshot()
		if !bytes.Equal(x, y) {
			t.Fatalf("states differ:\n%s\n%s", x, y)
		}
		z, err := restored(t, a).Snapshot()
		if err != nil || !bytes.Equal(x, z) {
			t.Fatalf("a snapshot came back as\n%s\n%s (%v)", x, z, err)
		}
	})
}

// view is a Result without what differs between two applications.
func view(r Result) string {
	r.Index = 0
	b, _ := r.MarshalJSON()
	return string(b)
}

// body is a snapshot without the applied index.
func body(t rapid.TB, s *State) []byte {
	c := s.Clone()
	c.applied = 0
	b, err := c.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return b[snapshotHeaderBytes:]
}

func restored(t *rapid.T, s *State) *State {
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Restore(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return r
}
