package catalog

import (
	"math"
	"testing"

	storage "github.com/storaged/storaged"
)

// stores makes three nodes with a store of that many bytes each, and a group.
func stores(t *testing.T, sizes ...int64) *fixture {
	t.Helper()
	f := newFixture(t)
	for i, bytes := range sizes {
		n := f.node(byte(i + 1))
		f.ok(UpdateNode{Node: n, Name: f.s.Nodes()[i].Name, Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(byte(i + 1)), CapacityBytes: bytes}}})
	}
	f.group(1)
	return f
}

const testGiB = 1 << 30

// A volume that the stores could never hold is refused, and so is one that would bring the total above the limit. A repeated
// request counts once, a deleted volume not at all, and a growth with its difference. The line is the call of mayProvision in each
// apply.
func TestProvision(t *testing.T) {
	f := stores(t, 100*testGiB, 100*testGiB, 100*testGiB)
	if u := f.s.UsableBytes(); u != 100*testGiB {
		t.Fatalf("three copies on three stores of 100 GiB: %d bytes", u)
	}
	make := func(name string, gib int64, percent int) CreateVolume {
		return CreateVolume{Name: name, SizeBytes: gib * testGiB, RequestID: "r-" + name, ProvisionPercent: percent, At: testTime}
	}
	f.refused(make("huge", 101, 1000), storage.KindInvalid, "101 GiB", "hold 100 GiB", "--overcommit")
	f.ok(make("a", 100, 200))
	f.ok(make("a", 100, 200)) // the same request
	f.refused(make("b", 101, 200), storage.KindInvalid)
	f.ok(make("b", 90, 200))
	f.ok(make("a", 100, 200))
	f.refused(make("c", 11, 200), storage.KindNoSpace, "201 GiB", "may have 200 GiB", "--provision-limit")
	f.ok(make("c", 10, 200))
	grow := func(gib int64, percent int) ResizeVolume {
		return ResizeVolume{Volume: storage.ByName("b"), SizeBytes: gib * testGiB, ProvisionPercent: percent}
	}
	f.ok(grow(90, 200)) // it has them
	f.refused(grow(91, 200), storage.KindNoSpace)
	f.refused(grow(200, 1000), storage.KindInvalid, "200 GiB")
	f.ok(grow(91, 201))
	f.ok(DeleteVolume{storage.ByName("c")})
	f.ok(grow(100, 200)) // what is being deleted does not count
	f.ok(make("huge", 1000, 0))
	f.ok(ResizeVolume{Volume: storage.ByName("huge"), SizeBytes: 2000 * testGiB})
	f.refused(make("d", 1, MaxProvisionPercent+1), storage.KindInvalid, "limit")
	f.refused(make("d", 1, -1), storage.KindInvalid)
	f.refused(grow(100, -1), storage.KindInvalid)
}

// What a node has not said is not known, and refuses nothing; a node that is down counts, and one that leaves does not.
func TestUsable(t *testing.T) {
	f := stores(t, 100*testGiB, 0, 100*testGiB)
	if u := f.s.UsableBytes(); u != 0 {
		t.Errorf("with a store whose size is not known: %d", u)
	}
	f.ok(CreateVolume{Name: "huge", SizeBytes: storage.MaxVolumeBytes, ProvisionPercent: 100, At: testTime})

	f = stores(t, 100*testGiB, 40*testGiB, 100*testGiB, 60*testGiB)
	for _, c := range []struct {
		change Command
		want   int64
	}{{SetNodeState{Node: 2, State: storage.NodeUp}, 100 * testGiB}, {SetNodeState{Node: 2, State: storage.NodeDown}, 100 * testGiB},
		{SetNodeIntent{Node: 2, Intent: storage.IntentDrain}, 60 * testGiB}} {
		f.ok(c.change)
		if u := f.s.UsableBytes(); u != c.want {
			t.Errorf("with %+v: %d GiB, want %d", c.change, u/testGiB, c.want/testGiB)
		}
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		n       int64
		percent int
		want    int64
	}{{1000, 100, 1000}, {1000, 150, 1500}, {199, 50, 99}, {1 << 50, MaxProvisionPercent, 1000 << 50}, {math.MaxInt64, 200, math.MaxInt64}} {
		if got := share(c.n, c.percent); got != c.want {
			t.Errorf("%d %% of %d: %d, want %d", c.percent, c.n, got, c.want)
		}
	}
	if added(math.MaxInt64-1, 5) != math.MaxInt64 || added(2, 3) != 5 {
		t.Error("sums")
	}
}
