package csi_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/hostfs"
)

// toBeStaged leads a life to the point before it is staged, and returns what it takes to go on.
func toBeStaged(t *testing.T) (*csitest.World, *csitest.Machine, driver, *life) {
	t.Helper()
	w := csitest.New()
	m := w.Machine("web-1", "")
	d, l := start(w, m), &life{capability: mountOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
	if err := l.run(t, d, 0, published); err != nil {
		t.Fatal(err)
	}
	return w, m, d, l
}

// patiently makes call number i of a life with a deadline, as an orchestrator does, and returns the code.
func (l *life) patiently(t *testing.T, d driver, i int) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	err := l.calls()[i](ctx, d)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("call %d took %s, its caller waited for two minutes", i, took)
	}
	return codeOf(err)
}

// The calls of a life that stage and unstage.
const stageCall, unpublishCall, unstageCall = 3, 8, 9

// TestHungTool: whatever hangs in the kernel or in a tool, a call ends with its context, and its volume's lock is free then.
// Nothing is started a second time beside the first, and finished work is found. The line that keeps it is the goroutine in inSlot.
func TestHungTool(t *testing.T) {
	for _, what := range []string{"look at", "format", "mount"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, m, d, l := toBeStaged(t)
				release := m.Hang(what)
				for range 2 {
					if code := l.patiently(t, d, stageCall); code != codes.DeadlineExceeded {
						t.Fatalf("while it hangs: %v", code)
					}
				}
				if n := m.Begun(what); n != 1 {
					t.Errorf("it was begun %d times side by side", n)
				}
				if !slices.Contains(m.Left(), "device of pvc-1") {
					t.Error("its device was taken away meanwhile")
				}
				release()
				synctest.Wait()
				if code := l.patiently(t, d, stageCall); code != codes.OK {
					t.Fatalf("when it has ended: %v", code)
				}
				if left := m.Left(); !slices.Equal(left, []string{"device of pvc-1", "mount " + staging}) {
					t.Errorf("it is staged with %v", left)
				}
			})
		})
	}
}

// TestHungMountIsUndone: a mount whose caller has left is undone by NodeUnstageVolume, which waits for it. The line is the path's
// key in Slotted.Mount; the device's is the call of Settle in Release.
func TestHungMountIsUndone(t *testing.T) {
	for _, what := range []string{"format", "mount"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, m, d, l := toBeStaged(t)
				release := m.Hang(what)
				if code := l.patiently(t, d, stageCall); code != codes.DeadlineExceeded {
					t.Fatalf("staged: %v", code)
				}
				if code := l.patiently(t, d, unstageCall); code != codes.DeadlineExceeded {
					t.Fatalf("unstaged while it hangs: %v", code)
				}
				release()
				if code := l.patiently(t, d, unstageCall); code != codes.OK {
					t.Fatalf("unstaged: %v", code)
				}
				synctest.Wait()
				if left := m.Left(); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

// TestUnheardError: a tool that fails after its caller has left tells the next one, instead of being begun again for ever.
func TestUnheardError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, d, l := toBeStaged(t)
		v, err := w.Cluster().Volume(t.Context(), "pvc-1")
		if err != nil {
			t.Fatal(err)
		}
		w.Write(v.ID)
		release := m.Hang("format")
		if code := l.patiently(t, d, stageCall); code != codes.DeadlineExceeded {
			t.Fatalf("while it hangs: %v", code)
		}
		release()
		synctest.Wait()
		if code := l.patiently(t, d, stageCall); code != codes.FailedPrecondition {
			t.Errorf("the next call: %v", code)
		}
		if n := m.Begun("format"); n != 1 {
			t.Errorf("it was begun %d times; the second call was to hear of the first", n)
		}
	})
}

// TestHungNeighbour: a volume that hangs holds up no other.
func TestHungNeighbour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, d, l := toBeStaged(t)
		release := m.Hang("format")
		defer release()
		if code := l.patiently(t, d, stageCall); code != codes.DeadlineExceeded {
			t.Fatalf("while it hangs: %v", code)
		}
		made, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "pvc-2",
			VolumeCapabilities: []*spec.VolumeCapability{blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}})
		if err != nil {
			t.Fatal(err)
		}
		other := &life{capability: blockOf(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER), node: l.node, volume: made.GetVolume()}
		for _, i := range []int{2, 3} {
			if code := other.patiently(t, d, i); code != codes.OK {
				t.Errorf("the other volume, call %d: %v", i, code)
			}
		}
	})
}

// TestClosedSlots: nothing is begun after Close, and who asks is told.
func TestClosedSlots(t *testing.T) {
	machine := csitest.New().Machine("web-1", "")
	m := hostfs.InSlots(machine.Mounts())
	m.Close()
	if err := m.Unmount(t.Context(), "/x"); err == nil || !strings.Contains(err.Error(), "the process stops") {
		t.Errorf("unmounted: %v", err)
	}
}

// lookedAt are Mounts of which only the looks work.
type lookedAt struct {
	hostfs.Mounts
	look func() error
}

func (l lookedAt) Device(context.Context, hostfs.Disk) (hostfs.BlockDevice, error) {
	return hostfs.BlockDevice{}, l.look()
}
func (l lookedAt) Usage(context.Context, string) (hostfs.Usage, error) {
	return hostfs.Usage{}, l.look()
}

// TestLooksAreOfNow: what somebody who has left would have seen is told nobody: whether a device is there is asked to act on it.
func TestLooksAreOfNow(t *testing.T) {
	for what, ask := range map[string]func(context.Context, hostfs.Mounts) error{
		"device": func(ctx context.Context, m hostfs.Mounts) error {
			_, err := m.Device(ctx, hostfs.Disk{Path: "/dev/x"})
			return err
		},
		"usage": func(ctx context.Context, m hostfs.Mounts) error {
			_, err := m.Usage(ctx, "/x")
			return err
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			hangs := make(chan struct{})
			var sees error = storage.E("look at", storage.KindNotFound, "it", nil)
			m := hostfs.InSlots(lookedAt{look: func() error { <-hangs; return sees }})
			defer m.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := ask(ctx, m); !errors.Is(err, hostfs.ErrPending) {
				t.Errorf("%s, while it hangs: %v", what, err)
			}
			close(hangs)
			synctest.Wait()
			sees = nil
			if err := ask(t.Context(), m); err != nil {
				t.Errorf("%s: it is there, and whoever looks is told: %v", what, err)
			}
		})
	}
}
