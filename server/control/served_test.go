package control

import (
	"reflect"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// A volume counts where it has been served for a while, and when nobody serves it any more, where it was served last.
func TestServed(t *testing.T) {
	state, index := catalog.New(), uint64(0)
	do := func(c catalog.Command) catalog.Result {
		t.Helper()
		b, err := catalog.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		index++
		r := state.Apply(index, b)
		if r.Err != nil {
			t.Fatalf("%#v: %v", c, r.Err)
		}
		return r
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	do(catalog.InitCluster{Cluster: catalog.Cluster{ID: storage.ClusterID{1}, Groups: 1}})
	for n := range byte(2) {
		do(catalog.AddNode{Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storage.StoreID{n + 1}}}, At: now})
	}
	key := storage.ReplicaKey{Store: storage.StoreID{1}}
	do(catalog.AddGroup{Node: 1, Group: 1, Store: key.Store})
	do(catalog.SetGroupReady{Group: 1})
	volume := do(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30, At: now}).Volume
	ref := storage.ByID(volume.ID)
	open := func(n storage.NodeID) (end func()) {
		t.Helper()
		a := do(catalog.Attach{Volume: ref, Holder: storage.NBDHolder(n, "n"+n.String(), false), Access: storage.AccessShared, At: now}).Attachment
		x := do(catalog.OpenSession{Volume: ref, Gateway: catalog.Gateway{Node: n}, Attachment: a.ID, Instance: "i", At: now}).Session
		return func() { do(catalog.CloseSession{Session: x.ID}) }
	}
	m := served{}
	at := func(after time.Duration, want ...storage.NodeID) {
		t.Helper()
		now = now.Add(after)
		uses := placement.Uses{}
		for _, n := range want {
			uses.Add(volume.Groups[0], n)
		}
		if got := m.uses(state, now, 10*time.Second); !reflect.DeepEqual(got, uses) {
			t.Errorf("used at %v, want %v", got, uses)
		}
	}
	at(0)
	end := open(1)
	at(0, 1) // nobody else uses the group
	at(time.Second, 1)
	end2 := open(2)
	at(8 * time.Second)
	at(time.Second, 1)
	at(9*time.Second, 1, 2)
	end2()
	end()
	at(time.Minute, 1, 2) // remembered
	end2 = open(2)
	at(time.Second, 2)
	end = open(1)
	at(time.Second, 1, 2) // node 1 had it a minute ago
	end2()
	at(time.Second, 1)
	end()
	at(servedMemory, 1)
	at(time.Second)
	if len(m) != 0 {
		t.Errorf("still remembers %v", m)
	}
}
