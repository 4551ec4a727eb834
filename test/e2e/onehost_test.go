//go:build e2e && devices

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// TestTwoMachinesOfOneHostID: while one machine uses a volume, another one that calls itself the same host is refused and told
// who the first is, whether it was given the name or is a copy of the first with its state; it ends nothing of the first's either.
// The first goes on writing, and loses nothing.
func TestTwoMachinesOfOneHostID(t *testing.T) {
	c := startWithVolume(t, nil)
	first := startHost(t, c, "host-a")
	a := first.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	at := mounted(t, a)
	j := startJournal(t, filepath.Join(at, "journal"))
	j.await(t, 50)

	named := startHost(t, c, "host-a")
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := named.Attach(t.Context(), host.Request{Volume: volumeName, Via: host.ViaFUSE}); !errors.Is(err, storage.ErrConflict) ||
		!strings.Contains(err.Error(), "host-a") || !strings.Contains(err.Error(), name) {
		t.Errorf("another machine of the name attaches: %v; want KindConflict, and who has the volume", err)
	}
	if err := named.Detach(t.Context(), volumeName, true); err != nil && !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("another machine of the name detaches: %v", err)
	}
	j.await(t, 50)

	copied := startCopy(t, c, first)
	awaitText(t, "the copy's attachments", func() string {
		list, err := copied.Attachments(t.Context())
		return fmt.Sprintf("%+v %v", list, err)
	}, func(text string) bool { return strings.Contains(text, "host-a") && strings.Contains(text, name) })
	j.await(t, 200)
	if list, err := copied.Attachments(t.Context()); err != nil || len(list) != 1 || list[0].State == host.StateReady {
		t.Errorf("the copy has %+v, %v", list, err)
	}
	if err := copied.Detach(t.Context(), volumeName, true); err != nil {
		t.Errorf("the copy detaches what it has not: %v", err)
	}
	j.await(t, 200)
	if text := first.LogText(t); strings.Contains(text, "fenced") {
		t.Errorf("the first was interrupted:\n%s", text)
	}
	checkJournal(t, first, at, j.end())
}

// startCopy starts the gateway of a machine whose disk was copied while the first one's gateway was running, and which has booted.
func startCopy(t *testing.T, c *testcluster.Cluster, first *hosttest.Host) *hosttest.Host {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	run(t, "cp", "-ax", first.Args[slices.Index(first.Args, "--state-dir")+1], state)
	run(t, "sh", "-c", `find "$1" -xdev -name '*.json' -exec sed -i 's/"boot": *"[^"]*"/"boot":"of the copy"/' {} +`, "sh", state)
	return startHost(t, c, "host-a", "--state-dir", state)
}

// checkJournal unmounts a volume, attaches it anew, and looks for every record that was synced.
func checkJournal(t *testing.T, g *hosttest.Host, at string, records int) {
	t.Helper()
	run(t, "umount", at)
	if err := g.Detach(t.Context(), volumeName, false); err != nil {
		t.Fatal(err)
	}
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	run(t, "e2fsck", "-fn", a.Device)
	run(t, "mount", "-o", "ro", a.Device, at)
	data, err := os.ReadFile(filepath.Join(at, "journal"))
	if err != nil || len(data) < records*recordBytes {
		t.Fatalf("%d records were synced, %d bytes are there: %v", records, len(data), err)
	}
	for n := range records {
		if string(data[n*recordBytes:][:recordBytes]) != string(record(n)) {
			t.Fatalf("record %d of %d is not as it was written", n, records)
		}
	}
	run(t, "umount", at)
}
