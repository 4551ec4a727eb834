package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// refusing is a backend that gives no export: err at once, or what the context ends with.
type refusing struct {
	*nbdtest.Backend
	err error // nil: it waits
}

func (r refusing) refuse(ctx context.Context) error {
	if r.err != nil {
		return r.err
	}
	<-ctx.Done()
	return storage.E("open session", storage.KindCanceled, "volume v", fmt.Errorf("%w; until then: no room", ctx.Err()))
}

func (r refusing) Exports(ctx context.Context) ([]nbd.ExportInfo, error) { return nil, r.refuse(ctx) }

func (r refusing) Stat(ctx context.Context, _ string, _ nbd.Peer) (nbd.ExportInfo, error) {
	return nbd.ExportInfo{}, r.refuse(ctx)
}

func (r refusing) Open(ctx context.Context, _ string, _ nbd.Peer) (nbd.Export, error) {
	return nil, r.refuse(ctx)
}

// askRaw sends one option with fixed newstyle, and returns the type and the data of the one reply; io.EOF if the connection ends instead.
func askRaw(nc net.Conn, option uint32, data []byte) (kind uint32, text string, err error) {
	if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
		return 0, "", err
	}
	if _, err := nc.Write(append([]byte{0, 0, 0, 3}, rawOption(option, data)...)); err != nil {
		return 0, "", err
	}
	head := make([]byte, 20)
	if _, err := io.ReadFull(nc, head); err != nil {
		return 0, "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[16:]))
	_, err = io.ReadFull(nc, b)
	return binary.BigEndian.Uint32(head[12:]), string(b), err
}

// TestRefusedExports: whatever the reason for which an export is not opened, and also when there is no answer in time, the client is told
// by the reply that the protocol has for it, with a text. EXPORT_NAME has no such reply: the connection ends, and the log says why.
//
// Guards, in handshake.go: the end of asking before that of the handshake; without it the last case failed: an end of the
// stream won against the reply now and then.
func TestRefusedExports(t *testing.T) {
	const (
		policy, invalid, unknown, shutdown = 1<<31 | 2, 1<<31 | 3, 1<<31 | 6, 1<<31 | 7
		optExportName, optInfo, optGo      = 1, 6, 7
		optList                            = 3
	)
	named := append(be32(nil, 1), 'v', 0, 0)
	for _, tc := range []struct {
		name string
		err  error
		want uint32
		text string
	}{
		{"not found", storage.E("open", storage.KindNotFound, "volume v", errors.New("gone")), unknown, "gone"},
		{"in use", storage.E("open", storage.KindConflict, "volume v", errors.New("host a has it")), policy, "host a has it"},
		{"not permitted", storage.E("open", storage.KindPermission, "volume v", errors.New("not yours")), policy, "not yours"},
		{"a bad name", storage.E("open", storage.KindInvalid, "volume v", errors.New("a bad name")), invalid, "a bad name"},
		{"no leader", storage.E("open", storage.KindUnavailable, "volume v", errors.New("no leader")), shutdown, "no leader"},
		{"no space", storage.E("open", storage.KindNoSpace, "volume v", errors.New("disks are full")), policy, "disks are full"},
		{"no answer in time", nil, shutdown, "until then: no room"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				f := newFixture(t, func(c *nbd.Config) {
					c.Backend, c.HandshakeTimeout = refusing{nbdtest.NewBackend(), tc.err}, 20*time.Second
					c.Logger = slog.New(slog.NewTextHandler(&log, nil))
				})
				for option, data := range map[uint32][]byte{optGo: named, optInfo: named, optList: nil} {
					nc := f.pipe()
					start := time.Now()
					kind, text, err := askRaw(nc, option, data)
					if took := time.Since(start); took > 16*time.Second {
						t.Errorf("option %d: after %v the connection may be ended before the reply is sent", option, took)
					}
					if err != nil || kind != tc.want || !strings.Contains(text, tc.text) {
						t.Errorf("option %d: reply %#x %q, error %v; want %#x %q", option, kind, text, err, tc.want, tc.text)
					}
					_ = nc.Close()
				}
				synctest.Wait()
				log.Reset()
				nc := f.pipe()
				if kind, text, err := askRaw(nc, optExportName, []byte("v")); err == nil {
					t.Errorf("EXPORT_NAME: reply %#x %q", kind, text)
				}
				synctest.Wait()
				if line := log.String(); !strings.Contains(line, tc.text) || !strings.Contains(line, "EXPORT_NAME has no reply") {
					t.Errorf("EXPORT_NAME: logged %q", line)
				}
				_ = nc.Close()
			})
		})
	}
}
