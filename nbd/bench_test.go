package nbd_test

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// BenchmarkServer measures requests through the server by our own client, which shares the processors with it. Some exports
// answer at once, others take as long as a replicated write.
func BenchmarkServer(b *testing.B) {
	for _, bm := range []struct {
		name    string
		depth   int
		bytes   int
		write   bool
		latency time.Duration
		network string
	}{
		{"read4k/depth1/tcp", 1, 4096, false, 0, "tcp"},
		{"read4k/depth1/unix", 1, 4096, false, 0, "unix"},
		{"write4k/depth1/tcp", 1, 4096, true, 0, "tcp"},
		{"write4k300us/depth1/tcp", 1, 4096, true, 300 * time.Microsecond, "tcp"},
		{"read4k/depth32/tcp", 32, 4096, false, 0, "tcp"},
		{"write4k/depth32/tcp", 32, 4096, true, 0, "tcp"},
		{"write4k300us/depth32/tcp", 32, 4096, true, 300 * time.Microsecond, "tcp"},
		{"read1m/depth8/tcp", 8, 1 << 20, false, 0, "tcp"},
		{"write1m/depth8/tcp", 8, 1 << 20, true, 0, "tcp"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			backend := nbdtest.NewBackend()
			v := backend.Add("v", 64<<20)
			v.Store(make([]byte, 64<<20), 0)
			if bm.latency > 0 {
				v.Before(func(nbdtest.Call) error {
					<-time.After(bm.latency)
					return nil
				})
			}
			addr := "127.0.0.1:0"
			if bm.network == "unix" {
				addr = filepath.Join(b.TempDir(), "s")
			}
			ln, err := net.Listen(bm.network, addr)
			if err != nil {
				b.Fatal(err)
			}
			s, err := nbd.NewServer(nbd.Config{Backend: backend})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = s.Serve(ctx, ln) })
			defer wg.Wait()
			defer cancel()
			c, err := nbdclient.Dial(ctx, nbdclient.Config{Network: bm.network, Address: ln.Addr().String(), Export: "v"})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			b.SetBytes(int64(bm.bytes))
			b.ReportAllocs()
			b.ResetTimer()
			var clients sync.WaitGroup
			for w := range bm.depth {
				clients.Go(func() {
					p := make([]byte, bm.bytes)
					off := int64(w) << 20
					for i := w; i < b.N; i += bm.depth {
						var err error
						if bm.write {
							err = c.WriteAt(ctx, p, off)
						} else {
							err = c.ReadAt(ctx, p, off)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			clients.Wait()
			b.StopTimer()
		})
	}
}
