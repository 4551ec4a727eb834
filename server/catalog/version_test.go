package catalog

import (
	"bytes"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestCatalogMixed guards that the copies of a cluster whose nodes run different builds stay the same: what came after BaseVersion is
// refused, by all alike, until the version that it came with is in force. Removed once (the comparison with InForce in Permits): this
// test failed.
func TestCatalogMixed(t *testing.T) {
	f := newFixtureOf(t, 0)
	f.node(1)
	f.group(1)
	f.volume("v")
	label := SetVolumeLabels{Volume: storage.ByName("v"), LabelChange: storage.LabelChange{Set: map[string]string{"k": "v"}}}
	f.refused(label, storage.KindConflict, "version 5", "version 4 is in force", "storagectl cluster upgrade")
	f.refused(CreateVolume{Name: "w", SizeBytes: 4096, Labels: label.Set}, storage.KindConflict, "storagectl cluster upgrade")
	f.ok(ResizeVolume{Volume: storage.ByName("v"), SizeBytes: 2 << 30, ProvisionPercent: 100_000}) // it came with version 4
	f.ok(RaiseVersion{To: 4})
	if v := f.s.Cluster().Version; v != 1 {
		t.Errorf("a version that is in force was recorded: %d", v)
	}
	f.ok(RaiseVersion{To: 6})
	f.ok(label)
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
