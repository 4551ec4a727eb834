package volume_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
	"github.com/storaged/storaged/replication/op"
)

const (
	block  = storage.BlockSize
	extent = storage.ExtentSize
)

// start returns a gateway of node 1 on c, closed at the end of the test. edit may be nil.
func start(t testing.TB, c *volumetest.Cluster, edit func(*volume.Config)) *volume.Gateway {
	t.Helper()
	config := volume.Config{Cluster: c.Start(1)}
	if edit != nil {
		edit(&config)
	}
	g, err := volume.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := g.Close(ctx); err != nil {
			t.Errorf("close the gateway: %v", err)
		}
	})
	return g
}

func open(t testing.TB, g *volume.Gateway, name string) *volume.Volume {
	t.Helper()
	v, err := g.Open(t.Context(), name, volume.OpenOptions{Access: storage.AccessShared})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// fake returns a cluster with the volume "data" of 8 extents over groups 1, 2, 1, 3.
func fake(t testing.TB) *volumetest.Cluster {
	c := volumetest.New()
	t.Cleanup(c.Close)
	c.CreateVolume("data", 8*extent, 1, 2, 1, 3)
	return c
}

// bubble runs f in virtual time with the cluster of fake.
func bubble(t *testing.T, f func(t *testing.T, c *volumetest.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, fake(t)) })
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) + byte(i>>8)*7 + seed
	}
	return p
}

// within returns a context with time for everything but what hangs; virtual time in a bubble.
func within(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}

func mustWrite(t testing.TB, v *volume.Volume, p []byte, off int64) {
	t.Helper()
	ctx, cancel := within(t)
	defer cancel()
	if err := v.WriteAt(ctx, p, off); err != nil {
		t.Fatal(err)
	}
}

func wantBytes(t testing.TB, v *volume.Volume, want []byte, off int64) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want))
	ctx, cancel := within(t)
	defer cancel()
	if err := v.ReadAt(ctx, got, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d of the volume is %#x, want %#x", off+int64(i), got[i], want[i])
			}
		}
	}
}

func TestWritesAndReadsOfAnyAlignment(t *testing.T) {
	c := fake(t)
	v := open(t, start(t, c, nil), "data")
	image := make([]byte, v.SizeBytes())
	for i, tc := range []struct {
		off int64
		n   int
	}{
		{0, block}, {512, 1024}, {block - 1, 2}, {3*block + 100, 3 * block}, {extent - 10, 20},
		{extent - block, 3<<20 + 17}, {2*extent + 1, 2*extent + 5}, {8*extent - 1, 1}, {8*extent - 5*block, 5 * block},
	} {
		p := pattern(tc.n, byte(i))
		mustWrite(t, v, p, tc.off)
		copy(image[tc.off:], p)
		wantBytes(t, v, p, tc.off)
	}
	wantBytes(t, v, image, 0)
	wantBytes(t, v, image[extent-77:extent+3*block+1], extent-77)
}

func TestZeroesAndDiscards(t *testing.T) {
	c := fake(t)
	v := open(t, start(t, c, nil), "data")
	image := pattern(int(v.SizeBytes()), 3)
	mustWrite(t, v, image, 0)

	zero := func(off, n int64) { clear(image[off : off+n]) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(v.WriteZeroes(t.Context(), 100, 50, false)) // within a block
	zero(100, 50)
	must(v.WriteZeroes(t.Context(), block+1, 5*extent, false)) // over many extents, partial edges
	zero(block+1, 5*extent)
	must(v.WriteZeroes(t.Context(), 7*extent+3, block, true)) // allocated
	zero(7*extent+3, block)
	must(v.Discard(t.Context(), 6*extent+1, 2*block)) // one whole block only
	zero(6*extent+block, block)
	must(v.Discard(t.Context(), 6*extent+10*block+1, block)) // no whole block
	wantBytes(t, v, image, 0)

	runs, err := v.Status(t.Context(), 5, v.SizeBytes()-5, 100)
	must(err)
	want := []volume.Run{
		{LengthBytes: 2*block - 5, Flags: op.RunAllocated},
		{LengthBytes: 5*extent - block, Flags: op.RunHole | op.RunZero},
		{LengthBytes: extent, Flags: op.RunAllocated},
		{LengthBytes: block, Flags: op.RunHole | op.RunZero},
		{LengthBytes: 2*extent - 2*block, Flags: op.RunAllocated},
	}
	if len(runs) != len(want) {
		t.Fatalf("runs %v, want %v", runs, want)
	}
	for i := range runs {
		if runs[i] != want[i] {
			t.Errorf("run %d is %v, want %v", i, runs[i], want[i])
		}
	}
	if runs, err := v.Status(t.Context(), 5, v.SizeBytes()-5, 2); err != nil || len(runs) != 2 {
		t.Errorf("limited to 2: %v, %v", runs, err)
	}
}

// TestEqualOptions: options that mean the same are attached once, and served as one.
func TestEqualOptions(t *testing.T) {
	for name, pair := range map[string][2]volume.OpenOptions{
		"exclusive":         {{}, {Access: storage.AccessExclusive}},
		"readers":           {{Access: storage.AccessReaders}, {Access: storage.AccessReaders, ReadOnly: true}},
		"clients who share": {{Access: storage.AccessShared, Client: "a"}, {Access: storage.AccessShared, Client: "b"}},
	} {
		c := fake(t)
		g := start(t, c, nil)
		attached := 0
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if call.Method == volumetest.Attach {
				attached++
			}
			return volumetest.Fault{}
		})
		for _, options := range pair {
			v, err := g.Open(t.Context(), "data", options)
			if err != nil {
				t.Fatalf("%s: %+v: %v", name, options, err)
			}
			if readers := options.Access == storage.AccessReaders; v.ReadOnly() != readers {
				t.Errorf("%s: %+v: read-only is %v", name, options, v.ReadOnly())
			}
		}
		if attached != 1 {
			t.Errorf("%s: attached %d times", name, attached)
		}
	}
}

func TestRangesAreChecked(t *testing.T) {
	c := fake(t)
	g := start(t, c, nil)
	v := open(t, g, "data")
	size := v.SizeBytes()
	p := make([]byte, 2)
	for name, err := range map[string]error{
		"read past the end":    v.ReadAt(t.Context(), p, size-1),
		"write past the end":   v.WriteAt(t.Context(), p, size-1),
		"negative":             v.WriteAt(t.Context(), p, -1),
		"empty":                v.WriteAt(t.Context(), nil, 0),
		"overflow":             v.WriteZeroes(t.Context(), 1<<62, 1<<62, false),
		"discard past the end": v.Discard(t.Context(), size, 1),
		"name":                 second(g.Open(t.Context(), "No Name", volume.OpenOptions{})),
		"access":               second(g.Open(t.Context(), "data", volume.OpenOptions{Access: "everybody"})),
		"attachment, access":   second(g.Open(t.Context(), "data", volume.OpenOptions{Attachment: 1, Access: storage.AccessShared})),
	} {
		if !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.Open(t.Context(), "other", volume.OpenOptions{}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("open of an unknown volume: %v", err)
	}
	ro, err := g.Open(t.Context(), "data", volume.OpenOptions{ReadOnly: true, Access: storage.AccessShared})
	if err != nil {
		t.Fatal(err)
	}
	if err := ro.WriteAt(t.Context(), p, 0); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("write through a read-only handle: %v", err)
	}
	wantBytes(t, ro, p, 0)
}

func second[T any](_ T, err error) error { return err }

// The session is opened at the first mutation, and closed in every group and in the catalog with the last handle.
func TestSessionIsLazyAndClosed(t *testing.T) {
	c := fake(t)
	g := start(t, c, nil)
	v, w := open(t, g, "data"), open(t, g, "data")
	wantBytes(t, v, make([]byte, block), 0)
	if live := c.LiveIn("data", 1); len(live) != 0 {
		t.Errorf("sessions %v after a read", live)
	}
	mustWrite(t, v, pattern(block, 1), 0)
	mustWrite(t, w, pattern(block, 2), extent)
	for _, group := range []storage.GroupID{1, 2, 3} {
		if live := c.LiveIn("data", group); len(live) != 1 {
			t.Errorf("sessions %v in group %d", live, group)
		}
	}
	if err := v.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w, pattern(block, 3), 0)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, group := range []storage.GroupID{1, 2, 3} {
		if live := c.LiveIn("data", group); len(live) != 0 {
			t.Errorf("sessions %v left in group %d", live, group)
		}
	}
	if s := c.Sessions(); len(s) != 0 {
		t.Errorf("sessions %v left in the catalog", s)
	}
	if err := w.WriteAt(t.Context(), pattern(block, 3), 0); !errors.Is(err, storage.ErrCanceled) {
		t.Errorf("write through a closed handle: %v", err)
	}
	wantBytes(t, open(t, g, "data"), pattern(block, 3), 0)
}

// TestAllocated: a volume holds something from the first acknowledged write of whatever until all is discarded.
func TestAllocated(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		want := func(when string, want bool) {
			t.Helper()
			if got, err := v.Allocated(t.Context()); err != nil || got != want {
				t.Errorf("%s: %t, %v; want %t", when, got, err, want)
			}
		}
		want("a new volume", false)
		if err := v.WriteAt(t.Context(), make([]byte, block), 7*extent+block); err != nil {
			t.Fatal(err)
		}
		want("zeroes are written near the end", true)
		if err := v.Discard(t.Context(), 0, 8*extent); err != nil {
			t.Fatal(err)
		}
		want("all is discarded", false)
	})
}
