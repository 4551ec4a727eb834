package catalog

import (
	"testing"

	storage "github.com/storaged/storaged"
)

func onHost(id string, access storage.Access) Attach {
	return Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: id, Kind: storage.HolderHost, Host: "h-" + id}, Access: access, At: testTime}
}

func (f *fixture) fence() {
	f.t.Helper()
	for _, v := range f.s.Unfenced() {
		f.ok(SetFenced{v.ID, v.Generation})
	}
}

func TestAttach(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	f.group(1)
	v := f.volume("v")
	first := f.ok(onHost("a", storage.AccessExclusive))
	if first.Attachment.ID != 1 || first.Attachment.Generation != 1 || first.Volume.Generation != 1 || first.Volume.Revision <= v.Revision {
		t.Fatalf("got %+v of %+v", first.Attachment, first.Volume)
	}
	if again := f.ok(onHost("a", storage.AccessExclusive)); *again.Attachment != *first.Attachment {
		t.Fatalf("a retry made %+v", again.Attachment)
	}
	f.refused(onHost("a", storage.AccessShared), storage.KindConflict, "h-a", "exclusively", "other terms")
	for _, c := range []Attach{onHost("b", storage.AccessExclusive), onHost("b", storage.AccessShared), {Volume: storage.ByName("v"), Holder: storage.NBDHolder(n1, "n1", false), Access: storage.AccessShared}} {
		f.refused(c, storage.KindConflict, "volume v", "exclusively by host h-a (holder a) since 2026-01-02T03:04:05Z", "detach it there", "--take-over")
	}
	f.refused(DeleteVolume{storage.ByName("v")}, storage.KindConflict, "host h-a")
	f.refused(Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(7, "x", false), Access: storage.AccessShared}, storage.KindPermission)

	over := onHost("b", storage.AccessExclusive)
	over.TakeOver, over.IfGeneration = true, 1
	taken := f.ok(over)
	if taken.Attachment.Generation != 2 || taken.Volume.Generation != 2 || taken.Volume.Fenced != 1 {
		t.Fatalf("after a takeover: %+v of %+v", taken.Attachment, taken.Volume)
	}
	if again := f.ok(over); *again.Attachment != *taken.Attachment || again.Volume.Generation != 2 {
		t.Fatalf("repeated: %+v", again)
	}
	late := onHost("c", storage.AccessExclusive)
	late.TakeOver, late.IfGeneration = true, 1
	f.refused(late, storage.KindConflict, "generation is 2", "host h-b", "since")
	if why := f.s.Lost(v.ID, 1); why == "" || f.s.Lost(v.ID, 2) != "" || f.s.Lost(v.ID, 3) != "" {
		t.Errorf("attachment 1 was lost because %q, 2 because %q", why, f.s.Lost(v.ID, 2))
	}

	open := OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "b"}, Attachment: 2, Instance: "i", At: testTime}
	f.refused(open, storage.KindUnavailable, "fenced")
	f.refused(SetFenced{v.ID, 3}, storage.KindInvalid)
	f.fence()
	f.ok(open)
	stolen := open
	stolen.Gateway.Host = "a"
	f.refused(stolen, storage.KindPermission, "host h-b")
	stolen.Attachment = 1
	f.refused(stolen, storage.KindFenced, "attachment 1 has ended", "host h-b")
	stolen.Attachment = 9
	f.refused(stolen, storage.KindInvalid, "never made")
}

func TestSharedAndReadOnly(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	f.group(1)
	f.volume("v")
	ro := onHost("a", storage.AccessShared)
	ro.ReadOnly = true
	a := f.ok(ro).Attachment
	b := f.ok(onHost("b", storage.AccessShared)).Attachment
	for _, readOnly := range []bool{false, true} { // a node has clients of both kinds
		f.ok(Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n1, "n1", readOnly), Access: storage.AccessShared, ReadOnly: readOnly})
	}
	f.refused(onHost("c", storage.AccessExclusive), storage.KindConflict, "shared, read-only, by host h-a")
	writer := OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "a"}, Attachment: a.ID, Instance: "i"}
	f.refused(writer, storage.KindPermission, "read-only")
	writer.ReadOnly = true
	f.ok(writer)
	x := f.ok(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "b"}, Attachment: b.ID, Instance: "i"}).Session

	r := f.ok(Detach{Volume: storage.ByName("v"), Holder: "b", At: testTime})
	if r.Volume.Generation != 1 || len(r.Predecessors) != 1 || r.Predecessors[0].ID != x.ID || r.Predecessors[0].State != SessionClosing {
		t.Fatalf("after the end of one of several: %+v", r)
	}
	if again := f.ok(Detach{Volume: storage.ByName("v"), Holder: "b", At: testTime}); len(again.Predecessors) != 1 {
		t.Errorf("a detach that is repeated does not say what is left to close: %+v", again)
	}
	f.ok(CloseSession{x.ID})
	if again := f.ok(Detach{Volume: storage.ByName("v"), Holder: "b"}); len(again.Predecessors) != 0 {
		t.Errorf("got %+v", again)
	}
	all := onHost("c", storage.AccessShared)
	all.TakeOver = true
	if r := f.ok(all); r.Volume.Generation != 2 || len(f.s.Attachments()) != 1 {
		t.Fatalf("after a takeover of everything: %+v", r.Volume)
	}
}

// TestReaders: what readers have attached nobody can write to, and what somebody may write to no reader attaches. One who shares and
// does not write himself is no reader: others may write beside him. The line is the call of Access.Beside in displaced.
func TestReaders(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	f.group(1)
	f.volume("v")
	readers := func(c Attach) Attach {
		c.Access, c.ReadOnly = storage.AccessReaders, true
		return c
	}
	writer := readers(onHost("a", storage.AccessReaders))
	writer.ReadOnly = false
	f.refused(writer, storage.KindInvalid, "only read")
	a := f.ok(readers(onHost("a", ""))).Attachment
	f.ok(readers(onHost("b", "")))
	f.ok(readers(Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n1, "n1", true), At: testTime}))
	sharedToo := onHost("c", storage.AccessShared)
	sharedToo.ReadOnly = true
	for _, c := range []Attach{onHost("c", storage.AccessShared), sharedToo, onHost("c", storage.AccessExclusive),
		{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n1, "n1", false), Access: storage.AccessShared, At: testTime}} {
		f.refused(c, storage.KindConflict, "for readers only by host h-a")
	}
	open := OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "a"}, Attachment: a.ID, Instance: "i"}
	f.refused(open, storage.KindPermission, "read-only")
	open.ReadOnly = true
	f.ok(open)
	for _, holder := range []string{"a", "b", "nbd:n1/read-only"} {
		if r := f.ok(Detach{Volume: storage.ByName("v"), Holder: holder, At: testTime}); r.Volume.Generation != 1 {
			t.Errorf("the end of reader %s moved the generation, and cut off the others: %+v", holder, r.Volume)
		}
	}
	f.ok(onHost("c", storage.AccessShared))
	f.refused(readers(onHost("a", "")), storage.KindConflict, "shared by host h-c")
	over := readers(onHost("a", ""))
	over.TakeOver = true
	if r := f.ok(over); r.Volume.Generation != 2 || len(f.s.Attachments()) != 1 {
		t.Errorf("after a takeover from a writer: %+v", r.Volume)
	}
}

// TestDetachMovesTheGeneration unless the holder itself says that nothing is on its way, and no session speaks against it.
func TestDetachMovesTheGeneration(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	f.group(1)
	f.volume("v")
	for _, c := range []struct {
		closed, session bool
		want            storage.Generation // moved by
	}{{false, false, 1}, {true, false, 0}, {true, true, 1}, {false, true, 1}} {
		a := f.ok(onHost("a", storage.AccessExclusive)).Attachment
		f.fence()
		if c.session {
			f.ok(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "a"}, Attachment: a.ID, Instance: "i"})
		}
		r := f.ok(Detach{Volume: storage.ByName("v"), Attachment: a.ID, Closed: c.closed, At: testTime})
		if moved := r.Volume.Generation - a.Generation; moved != c.want {
			t.Errorf("%+v: moved by %d", c, moved)
		}
	}
	a := f.ok(onHost("a", storage.AccessExclusive)).Attachment
	f.ok(Detach{Volume: storage.ByName("v"), Holder: "b", Attachment: a.ID})
	f.ok(Detach{Volume: storage.ByName("v"), Holder: "a", Attachment: a.ID - 1})
	f.ok(Detach{Volume: storage.ByName("nobody"), Holder: "a"})
	if len(f.s.Attachments()) != 1 {
		t.Error("another one's attachment has ended")
	}
	f.refused(Detach{Volume: storage.ByName("v")}, storage.KindInvalid)
}

// TestClientsOfSilentNodesGiveWay, and hosts do not.
func TestClientsOfSilentNodesGiveWay(t *testing.T) {
	f := newFixture(t)
	n1, n2 := f.node(1), f.node(2)
	f.group(1)
	v := f.volume("v")
	one := Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n1, "n1", false), Access: storage.AccessExclusive, At: testTime}
	two := Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n2, "n2", false), Access: storage.AccessExclusive, At: testTime}
	f.ok(one)
	f.refused(two, storage.KindConflict, "NBD clients of node n1")
	f.ok(SetNodeState{Node: n1, State: storage.NodeSuspect})
	if r := f.ok(two); r.Volume.Generation != 2 || r.Volume.Fenced != 1 {
		t.Fatalf("a suspect node's clients were not fenced: %+v", r.Volume)
	}
	f.ok(SetNodeState{Node: n1, State: storage.NodeUp})
	f.refused(one, storage.KindConflict, "NBD clients of node n2")

	f.fence()
	open := OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Node: n2}, Attachment: 2, Instance: "i", At: testTime}
	x := f.ok(open).Session
	f.ok(ExpireSessions{[]storage.SessionID{x.ID}})
	if r := f.ok(open); r.Session.ID == x.ID { // it was heard of again, and nobody had come
		t.Fatalf("got %+v", r.Session)
	}
	f.refused(one, storage.KindConflict)
	f.ok(ExpireSessions{[]storage.SessionID{x.ID + 1}})
	f.ok(one)

	f.ok(Detach{Volume: storage.ByName("v"), Holder: "nbd:n1"})
	a := f.ok(onHost("a", storage.AccessExclusive)).Attachment
	f.fence()
	y := f.ok(OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "a"}, Attachment: a.ID, Instance: "i"}).Session
	f.ok(ExpireSessions{[]storage.SessionID{y.ID}})
	if at, _ := f.s.Attachment(a.ID); !at.Silent {
		t.Error("a host whose session has expired is not shown as silent")
	}
	f.refused(one, storage.KindConflict, "host h-a")
	f.ok(Detach{Volume: storage.ByID(v.ID), Holder: "a"})
}

// Two clients of one node exclude each other as those of two nodes do, and are named.
func TestClientsOfOneNode(t *testing.T) {
	f := newFixture(t)
	n := f.node(1)
	f.group(1)
	f.volume("v")
	of := func(client string, readOnly bool) Attach {
		return Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n, "n1", readOnly).ForClient(client), Access: storage.AccessExclusive, ReadOnly: readOnly, At: testTime}
	}
	if a, b := storage.NBDHolder(n, "n1", true).ForClient("10.0.0.7"), storage.NBDHolder(n, "n1", false).ForClient("10.0.0.7"); a.Same(b) || checkHolder("attach", a) != nil {
		t.Errorf("who only reads is %+v, who writes as well %+v", a, b)
	}
	first := f.ok(of("10.0.0.7", false)).Attachment
	if again := f.ok(of("10.0.0.7", false)).Attachment; again.ID != first.ID {
		t.Errorf("the same client got %+v", again)
	}
	f.refused(of("CN=vm-2", false), storage.KindConflict, "exclusively by NBD client 10.0.0.7 of node n1")
	f.refused(of("10.0.0.7", true), storage.KindConflict, "NBD client 10.0.0.7 of node n1")
	f.refused(Attach{Volume: storage.ByName("v"), Holder: storage.NBDHolder(n, "n1", false), Access: storage.AccessShared, At: testTime}, storage.KindConflict, "10.0.0.7")
}

func TestHolders(t *testing.T) {
	f := newFixture(t)
	n1 := f.node(1)
	f.group(1)
	f.volume("v")
	for _, h := range []storage.Holder{{}, {ID: "a"}, {ID: "-a", Kind: storage.HolderHost}, {ID: "a b", Kind: storage.HolderHost}, {ID: "nbd:x", Kind: storage.HolderHost},
		{ID: "x", Kind: storage.HolderNBD, Node: n1}, {ID: "nbd:x", Kind: storage.HolderNBD}, {ID: "a", Kind: storage.HolderHost, Node: n1},
		{ID: string(make([]byte, storage.MaxHolderBytes+1)), Kind: storage.HolderHost}, {ID: "a", Kind: storage.HolderHost, Host: "a b"}} {
		f.refused(Attach{Volume: storage.ByName("v"), Holder: h, Access: storage.AccessShared}, storage.KindInvalid)
	}
	f.refused(onHost("a", "both"), storage.KindInvalid, "exclusive, shared or readers")
	f.ok(Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "ns/pod:1@host.example_x", Kind: storage.HolderHost}, Access: storage.AccessShared})
}
