package catalog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestCatalogMixed guards that the copies of a cluster whose nodes run different builds stay the same: a leader proposes nothing that
// came after BaseVersion until the version that it came with is in force. What builds without such a version have brought into the log
// is applied, because they apply it. Removed once each (the comparison in permits, unruledVersion): this test failed.
func TestCatalogMixed(t *testing.T) {
	f := newFixtureOf(t, 0)
	f.node(1)
	f.group(1)
	f.volume("v")
	resize := ResizeVolume{Volume: storage.ByName("v"), SizeBytes: 2 << 30, ProvisionPercent: 100_000}
	label := SetVolumeLabels{Volume: storage.ByName("v"), LabelChange: storage.LabelChange{Set: map[string]string{"k": "v"}}}
	create := CreateVolume{Name: "w", SizeBytes: 4096, Labels: label.Set}
	refused := func(c Command, came string) {
		t.Helper()
		err := f.s.Permits(c)
		for _, words := range []string{came, fmt.Sprintf("version %d is in force", f.s.InForce()), "storagectl cluster upgrade"} {
			if storage.KindOf(err) != storage.KindConflict || !strings.Contains(err.Error(), words) {
				t.Errorf("%#v: %v, want a word of %q", c, err, words)
			}
		}
	}
	permitted := func(c Command) {
		t.Helper()
		if err := f.s.Permits(c); err != nil {
			t.Errorf("%#v: %v", c, err)
		}
	}
	refused(resize, "came with version 4")
	refused(Attach{Access: storage.AccessReaders}, "came with version 4")
	refused(label, "came with version 5")
	refused(create, "came with version 5")
	permitted(CreateVolume{Name: "w", SizeBytes: 4096})
	f.ok(resize) // another build's leader has brought them into the log
	f.ok(label)
	if err := f.s.permits(AddGroup{}, 0); storage.KindOf(err) != storage.KindConflict {
		t.Errorf("a command of version 1 where none is in force: %v", err)
	}
	f.ok(RaiseVersion{To: BaseVersion})
	if v := f.s.Cluster().Version; v != 1 {
		t.Errorf("a version that is in force was recorded: %d", v)
	}
	f.ok(RaiseVersion{To: 4})
	permitted(resize)
	refused(label, "came with version 5")
	f.ok(RaiseVersion{To: 6})
	permitted(label)
	permitted(create)
	refused(SetNodeIntent{}, "came with version 8")
	refused(SetReplica{Role: storage.RoleVoter, Stays: true}, "came with version 9")
	f.ok(RaiseVersion{To: 5}) // late, and no way back
	if v := f.s.InForce(); v != 6 {
		t.Errorf("version %d after 6 and 5", v)
	}
	if v, _ := f.s.VolumeByName("v"); v.Labels["k"] != "v" {
		t.Errorf("labels %v", v.Labels)
	}
}

// A build that does not know the version in force does not take part: it refuses the snapshot, and the command that raised the version.
func TestLaterVersionIsNotRead(t *testing.T) {
	f := newFixtureOf(t, 0)
	f.ok(RaiseVersion{To: Version})
	f.s.cluster.Version = Version + 1 // as a later build would have
	b, err := f.s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(bytes.NewReader(b)); storage.KindOf(err) != storage.KindUnsupported {
		t.Errorf("a snapshot of a cluster in version %d: %v", Version+1, err)
	}
	if _, err := Encode(RaiseVersion{To: Version + 1}); storage.KindOf(err) != storage.KindUnsupported {
		t.Errorf("to a version that nobody knows: %v", err)
	}
	if _, err := Encode(InitCluster{Cluster{ID: storage.ClusterID{1}, Version: Version + 1}}); storage.KindOf(err) != storage.KindUnsupported {
		t.Errorf("a cluster of a version that nobody knows: %v", err)
	}
}
