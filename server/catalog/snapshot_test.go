package catalog

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	storage "github.com/storaged/storaged"
)

var update = flag.Bool("update", false, "rewrite testdata")

// full is a state with something of everything.
func full(t *testing.T) *State {
	f := newFixtureOf(t, 0)
	for n := byte(1); n <= 3; n++ {
		f.node(n)
	}
	f.group(1)
	f.group(2)
	f.ok(AddGroup{3, 3, storeID(3)})
	k2 := f.ok(PlanReplica{1, 2, storeID(2)}).Replica
	f.ok(SetReplica{Group: 1, Key: k2, Role: storage.RoleLearner})
	f.ok(PlanReplica{1, 3, storeID(3)})
	f.ok(CreateVolume{Name: "web-data", SizeBytes: 10 << 30, RequestID: "req-1", At: testTime})
	gone := f.volume("gone")
	f.volume("old")
	f.ok(DeleteVolume{storage.ByName("old")})
	f.ok(DeleteVolume{storage.ByID(gone.ID)})
	f.ok(FinishDelete{gone.ID})
	f.ok(Attach{Volume: storage.ByName("web-data"), Holder: storage.Holder{ID: "lost", Kind: storage.HolderHost}, Access: storage.AccessExclusive, At: testTime})
	web1 := Attach{Volume: storage.ByName("web-data"), Holder: storage.Holder{ID: "4c4c", Kind: storage.HolderHost, Host: "web-1"}, Access: storage.AccessShared, At: testTime}
	web1.ReadOnly, web1.TakeOver = true, true
	at := f.ok(web1).Attachment
	f.ok(SetFenced{at.Volume, at.Generation})
	f.ok(f.attached(OpenSession{Volume: storage.ByName("web-data"), Gateway: Gateway{Node: 1}, Instance: "4f2a", At: testTime}))
	f.ok(OpenSession{Volume: storage.ByName("web-data"), Gateway: Gateway{Host: "4c4c"}, Attachment: at.ID, Instance: "77", ReadOnly: true, At: testTime})
	f.ok(ExpireSessions{[]storage.SessionID{2}})
	f.ok(SetNodeState{Node: 3, State: storage.NodeDown})
	return f.s
}

func TestGoldenSnapshot(t *testing.T) {
	s := full(t)
	golden(t, s, "testdata/snapshot_v1.golden")
	iops, bytes := int64(500), int64(64<<20)
	s = s.Clone()
	command, err := Encode(SetVolumeLimits{Volume: storage.ByName("web-data"), LimitsChange: storage.LimitsChange{MaxIOPS: &iops, MaxBytesPerSecond: &bytes}})
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Apply(s.Applied()+1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	s = golden(t, s, "testdata/snapshot_v2.golden")
	if v, _ := s.VolumeByName("web-data"); v.Limits != (storage.VolumeLimits{MaxIOPS: iops, MaxBytesPerSecond: bytes}) {
		t.Errorf("the golden snapshot of version 2 holds %+v", v)
	}
	g := s.Groups()[0]
	r := g.Replicas[len(g.Replicas)-1]
	role := storage.RoleVoter
	if r.Role == storage.RoleVoter {
		role = storage.RoleLeaving
	}
	command, err = Encode(SetReplica{Group: g.ID, Key: r.Key, Role: role, ConfigIndex: 77})
	if err != nil {
		t.Fatal(err)
	}
	s = s.Clone()
	if r := s.Apply(s.Applied()+1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	s = golden(t, s, "testdata/snapshot_v3.golden")
	if g, _ := s.Group(g.ID); g.Replicas[len(g.Replicas)-1].ConfigIndex != 77 {
		t.Errorf("the golden snapshot of version 3 holds %+v", g)
	}
	readers := Attach{Volume: storage.ByName("web-data"), Holder: storage.Holder{ID: "4c4c", Kind: storage.HolderHost, Host: "web-1"}, Access: storage.AccessReaders, ReadOnly: true,
		TakeOver: true, At: testTime}
	if command, err = Encode(readers); err != nil {
		t.Fatal(err)
	}
	s = s.Clone()
	if r := s.Apply(s.Applied()+1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	s = golden(t, s, "testdata/snapshot_v4.golden")
	if list := s.Attachments(); len(list) != 1 || list[0].Access != storage.AccessReaders {
		t.Errorf("the golden snapshot of version 4 holds %+v", list)
	}
	labels := map[string]string{"env": "prod", "example.com/team": "shop", "a": ""}
	if command, err = Encode(RaiseVersion{To: 6}); err != nil {
		t.Fatal(err)
	}
	s = s.Clone()
	if r := s.Apply(s.Applied()+1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	if command, err = Encode(SetVolumeLabels{Volume: storage.ByName("web-data"), LabelChange: storage.LabelChange{Set: labels}}); err != nil {
		t.Fatal(err)
	}
	s = s.Clone()
	if r := s.Apply(s.Applied()+1, command); r.Err != nil {
		t.Fatal(r.Err)
	}
	s = golden(t, s, "testdata/snapshot_v6.golden")
	if v, _ := s.VolumeByName("web-data"); !maps.Equal(v.Labels, labels) || s.InForce() != 6 {
		t.Errorf("the golden snapshot of version 6 holds version %d and %+v", s.InForce(), v)
	}
}

// golden compares the snapshot of a state with what a file holds, and returns the state that the file holds.
func golden(t *testing.T, state *State, file string) *State {
	t.Helper()
	got, err := state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the format of snapshots changed; nodes could not read each other's:\n%q\nwant\n%q", got, want)
	}
	s, err := Restore(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.VolumeByName("web-data"); !ok || len(v.Groups) != 2 {
		t.Errorf("the golden snapshot holds %+v", v)
	}
	return s
}

func TestEmptySnapshot(t *testing.T) {
	b, err := New().Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Restore(iotest.OneByteReader(bytes.NewReader(b))); err != nil || s.Initialised() {
		t.Fatalf("got %+v, %v", s, err)
	}
}

// TestDamagedSnapshots: every flipped bit and every cut is noticed.
func TestDamagedSnapshots(t *testing.T) {
	good, err := full(t).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := Restore(bytes.NewReader(bad)); err == nil {
			t.Fatalf("a flipped bit in byte %d is not noticed", i)
		}
		if _, err := Restore(bytes.NewReader(good[:i])); storage.KindOf(err) != storage.KindCorrupt {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := Restore(bytes.NewReader(append(bytes.Clone(good), 'x'))); storage.KindOf(err) != storage.KindCorrupt {
		t.Errorf("bytes after the end: %v", err)
	}
	if _, err := Restore(iotest.ErrReader(os.ErrClosed)); err == nil {
		t.Error("an error of the reader is lost")
	}
}

// seal makes a snapshot of any body, with good checksums.
func seal(version uint32, body string) []byte {
	h := make([]byte, snapshotHeaderBytes)
	copy(h, snapshotMagic)
	binary.LittleEndian.PutUint32(h[8:], version)
	binary.LittleEndian.PutUint32(h[12:], uint32(len(body)))
	binary.LittleEndian.PutUint32(h[16:], crc32.Checksum([]byte(body), castagnoli))
	binary.LittleEndian.PutUint32(h[20:], crc32.Checksum(h[:20], castagnoli))
	return slices.Concat(h, []byte(body))
}

func TestImpossibleSnapshots(t *testing.T) {
	for _, c := range []struct {
		version uint32
		body    string
		kind    storage.Kind
	}{
		{0, `{}`, storage.KindUnsupported},
		{Version + 1, `{}`, storage.KindUnsupported},
		{1, `{"applied":1,"unknown":1}`, storage.KindCorrupt},
		{1, `{"nodes":[{"id":1,"name":"a","addrs":{"peer":"h:1"},"stores":[],"state":"up","added_at":"2026-01-02T03:04:05Z"}]}`, storage.KindCorrupt}, // above last_node
		{1, `{"last_group":1,"groups":[{"id":1,"state":"ready","replicas":[],"last_incarnation":0}]}`, storage.KindCorrupt},                           // no voter
		{1, `{"last_volume":1,"volumes":[{"id":1,"name":"v","size_bytes":4096,"groups":[1],"epoch":1,"generation":1,"state":"ready","created_at":"2026-01-02T03:04:05Z","revision":1}]}`, storage.KindCorrupt},
		{1, `{"last_session":1,"sessions":[{"id":1,"volume":1,"gateway":{},"instance":"i","generation":1,"state":"live","opened_at":"2026-01-02T03:04:05Z"}]}`, storage.KindCorrupt},
	} {
		if _, err := Restore(bytes.NewReader(seal(c.version, c.body))); storage.KindOf(err) != c.kind {
			t.Errorf("%s: got %v, want %v", c.body, err, c.kind)
		}
	}
}

// TestOddLabels: a snapshot is refused whose only fault is a label.
func TestOddLabels(t *testing.T) {
	snapshot, err := os.ReadFile("testdata/snapshot_v6.golden")
	if err != nil {
		t.Fatal(err)
	}
	body := string(snapshot[snapshotHeaderBytes:])
	for label, kind := range map[string]storage.Kind{`"env":"test"`: storage.KindNone, `"env":"te st"`: storage.KindCorrupt, `"-":""`: storage.KindCorrupt} {
		if _, err := Restore(bytes.NewReader(seal(6, strings.ReplaceAll(body, `"env":"prod"`, label)))); storage.KindOf(err) != kind {
			t.Errorf("with %s: %v, want %v", label, err, kind)
		}
	}
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"applied":1}`))
	golden, err := os.ReadFile("testdata/snapshot_v1.golden")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden[snapshotHeaderBytes:])
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := Restore(bytes.NewReader(seal(1, string(body))))
		if err != nil {
			return
		}
		if err := s.Check(); err != nil {
			t.Fatalf("restored what it must not hold: %v", err)
		}
		b, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(bytes.NewReader(b)); err != nil {
			t.Fatalf("its own snapshot does not come back: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, c := range []Command{
		InitCluster{Cluster{ID: storage.ClusterID{1}}}, AddNode{Name: "n", Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(1), CapacityBytes: 1}}},
		OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "h"}, Attachment: 1, Instance: "i"}, ExpireSessions{[]storage.SessionID{1}},
		SetReplica{Group: 1, Key: storage.ReplicaKey{Store: storeID(1), Incarnation: 2}, Role: storage.RoleVoter}, CreateVolume{Name: "v", SizeBytes: 4096},
		Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: "h", Kind: storage.HolderHost}, Access: storage.AccessShared, TakeOver: true, IfGeneration: 2},
		Detach{Volume: storage.ByID(1), Holder: "h"}, SetFenced{1, 2}, SetVolumeLimits{Volume: storage.ByName("v"), LimitsChange: storage.LimitsChange{MaxIOPS: new(int64)}},
		SetVolumeLabels{Volume: storage.ByName("v"), LabelChange: storage.LabelChange{Set: map[string]string{"k": "v"}, Remove: []string{"a.b/c"}}},
		RaiseVersion{Version},
	} {
		b, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > commandSealBytes && string(b[:len(commandMagic)]) == commandMagic { // or the fuzzer is kept out
			b = sealCommand(b[commandSealBytes:])
		}
		s := full(t)
		s.Apply(s.Applied()+1, b) // must not panic
		if err := s.Check(); err != nil {
			t.Fatalf("%q broke the state: %v", b, err)
		}
		c, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(c)
		if err != nil {
			t.Fatalf("%q decodes to what cannot be encoded: %v", b, err)
		}
		if d, err := Decode(again); err != nil {
			t.Fatalf("%q became %q: %+v, %v", b, again, d, err)
		}
	})
}
