package hostfs

import (
	"testing"

	mount "k8s.io/mount-utils"
)

// A mount that only the host has, and that this process does not see at its own place, uses its device. If it were not listed,
// a device that failed would be removed by force while the host uses it. What both see is one mount, and this process' own view
// is on top. The line is the one in listed that keeps hosts.
func TestHostsOwnMounts(t *testing.T) {
	at := func(path string, minor int) mount.MountInfo {
		return mount.MountInfo{MountPoint: path, Major: 7, Minor: minor, Root: "/", FsType: "ext4"}
	}
	infos := []mount.MountInfo{at("/", 1), at("/host", 2), at("/host/srv/db", 3), at("/host/var/lib/kubelet/x", 4), at("/var/lib/kubelet/x", 4), at("/hosts", 5)}
	got := listed(infos, "/host")
	want := []struct {
		path   string
		device BlockDevice
	}{{"/", BlockDevice{Number: 7<<8 | 2}}, {"/srv/db", BlockDevice{Number: 7<<8 | 3}}, {"/", BlockDevice{Number: 7<<8 | 1}},
		{"/var/lib/kubelet/x", BlockDevice{Number: 7<<8 | 4}}, {"/hosts", BlockDevice{Number: 7<<8 | 5}}}
	if len(got) != len(want) {
		t.Fatalf("listed %+v", got)
	}
	for i, w := range want {
		if got[i].Path != w.path || !got[i].Shows(w.device) {
			t.Errorf("%d: %+v, want %s of %d", i, got[i], w.path, w.device.Number)
		}
	}
	if m, _ := MountAt(got, "/"); !m.Shows(BlockDevice{Number: 7<<8 | 1}) {
		t.Errorf("at / there is %+v", m)
	}
	if all := listed(infos, ""); len(all) != len(infos) {
		t.Errorf("without a host's root: %+v", all)
	}
}
