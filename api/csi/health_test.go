package csi_test

import (
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi/csitest"
)

// reasons are those of health entries, with a word of each message.
func reasons(entries []*spec.VolumeHealth_VolumeHealthEntry) (out []string) {
	for _, e := range entries {
		out = append(out, e.GetStatus().String()+" "+e.GetReason()+": "+e.GetMessage())
	}
	return out
}

func wantReasons(t *testing.T, what string, entries []*spec.VolumeHealth_VolumeHealthEntry, want ...string) {
	t.Helper()
	got := reasons(entries)
	if len(got) != len(want) || slices.ContainsFunc(want, func(w string) bool { return !strings.HasPrefix(strings.Join(got, "\n"), w) }) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestControllerHealth: a volume is told from its groups: nobody leads one, replicas of one are missing, or all is well.
func TestControllerHealth(t *testing.T) {
	w := csitest.New()
	d := start(w, w.Machine("web-1", ""))
	made, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-1",
		VolumeCapabilities: []*spec.VolumeCapability{blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	for _, c := range []struct {
		what string
		edit func(g *api.Group)
		want []string
	}{
		{"as it should be", func(*api.Group) {}, nil},
		{"a replica is away", func(g *api.Group) { g.Replicas[0].Online = false }, []string{"DEGRADED ReplicasMissing: groups lack replicas: 1 (2 of 3)"}},
		{"nobody leads", func(g *api.Group) { g.Leader = 0 }, []string{"INACCESSIBLE GroupWithoutLeader: nobody leads groups 1"}},
	} {
		w.Cluster().Edit(func(_ *[]api.Node, groups *[]api.Group, _ *api.Status) { c.edit(&(*groups)[0]) })
		got, err := d.ControllerGetVolumeHealth(t.Context(), &spec.ControllerGetVolumeHealthRequest{VolumeId: id})
		if err != nil {
			t.Fatal(err)
		}
		wantReasons(t, c.what, got.GetVolumeHealth().GetHealthStatuses(), c.want...)
		list, err := d.ControllerListVolumeHealth(t.Context(), &spec.ControllerListVolumeHealthRequest{})
		if err != nil || len(list.GetEntries()) != len(c.want) {
			t.Errorf("%s: the list has %v, %v", c.what, list.GetEntries(), err)
		}
	}
}

// TestNodeHealth: a host says what is wrong with its device, and with the file system on it.
func TestNodeHealth(t *testing.T) {
	for _, c := range []struct {
		what  string
		spoil func(m *csitest.Machine)
		want  []string
	}{
		{"as it should be", func(*csitest.Machine) {}, nil},
		{"its device has failed", func(m *csitest.Machine) { m.Lose("pvc-1") }, []string{"INACCESSIBLE DeviceFailed: the connection to the kernel was lost"}},
		{"its path is another's", func(m *csitest.Machine) { m.Steal("pvc-1") }, []string{"INACCESSIBLE DeviceFailed: look at device"}},
		{"its file system is frozen", func(m *csitest.Machine) { m.Freeze("pvc-1") }, []string{"INACCESSIBLE FileSystemReadOnly: the kernel has made the ext4 at " + staging}},
	} {
		_, m, d, l := toBeStaged(t)
		if err := l.run(t, d, published, staged); err != nil {
			t.Fatal(err)
		}
		c.spoil(m)
		got, err := d.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: l.volume.GetVolumeId()})
		if err != nil {
			t.Fatal(err)
		}
		wantReasons(t, c.what, got.GetVolumeHealth().GetHealthStatuses(), c.want...)
	}
}
