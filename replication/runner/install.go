package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// A snapshot travels in one of two ways. With TransportConfig.Pull it is the name of a manifest, which the receiver pulls
// before Raft hears of it. Without (the catalog) its content is sent in chunks that fit a frame, each answered before the
// next, and the last one hands the whole to Raft.

const (
	// maxSnapshotBytes bounds an inline snapshot.
	maxSnapshotBytes = 1 << 30
	// snapshotChunkBytes is how much of it one request carries.
	snapshotChunkBytes = 4 << 20
	// snapshotSilence is how long an unfinished inline snapshot is kept without another chunk, and how long a chunk
	// may take.
	snapshotSilence = 10 * time.Second
)

// snapshotChunks collects an inline snapshot.
type snapshotChunks struct {
	mu      sync.Mutex
	id      uint64 // of the snapshot that is being received; guarded by mu, like all below
	from    storage.NodeID
	content [][]byte
	bytes   int64
	timer   *time.Timer // drops it
}

// InstallSnapshot sends the name of a manifest, or the snapshot itself, and waits for as long as the receiver takes; a
// lost connection ends the wait.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.cfg.Pull == nil {
		err := t.sendInline(id, target, args, resp, data)
		if err != nil {
			t.awaitPeer(id, target, args.Term)
		}
		return err
	}
	name, err := io.ReadAll(io.LimitReader(data, maxIDBytes+1))
	if err != nil {
		return err
	}
	if len(name) > maxIDBytes {
		return storage.E("install snapshot", storage.KindInternal, "group "+t.cfg.Group.String(), errors.New("the manifest's name is too long"))
	}
	err = t.sendInstall(target, encodeInstall(id, installPart{req: args, manifest: string(name), last: true}), nil, 0, resp)
	if err != nil {
		t.awaitPeer(id, target, args.Term)
	}
	if err == nil && resp.Success {
		t.lease.success(id, args.Term, time.Time{}, args.LastLogIndex) // held durably; no lease comes of it
	}
	return err
}

// sendInline sends the content in chunks. The sender reads ahead by one, to know which is the last.
func (t *Transport) sendInline(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader) error {
	part := installPart{req: args, stream: uint64(time.Now().UnixNano())}
	chunk, next := make([]byte, snapshotChunkBytes), make([]byte, snapshotChunkBytes)
	n, err := io.ReadFull(data, chunk)
	for {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		var m int
		nextErr := io.EOF
		if err == nil {
			m, nextErr = io.ReadFull(data, next)
		}
		part.last = m == 0 && errors.Is(nextErr, io.EOF)
		if part.offset+uint64(n) > maxSnapshotBytes {
			return storage.E("install snapshot", storage.KindUnsupported, "group "+t.cfg.Group.String(),
				fmt.Errorf("the snapshot has more than %d bytes", maxSnapshotBytes))
		}
		timeout := snapshotSilence
		if part.last {
			timeout = 0 // Raft installs it now
		}
		if err := t.sendInstall(target, encodeInstall(id, part), chunk[:n], timeout, resp); err != nil || part.last || resp.Term > args.Term {
			return err
		}
		part.offset += uint64(n)
		chunk, next, n, err = next, chunk, m, nextErr
	}
}

func (t *Transport) sendInstall(target raft.ServerAddress, header, content []byte, timeout time.Duration,
	resp *raft.InstallSnapshotResponse) error {
	answer, err := t.call(target, peer.Bulk, methodRaftInstallSnapshot, header, [][]byte{content}, timeout)
	if err != nil {
		return err
	}
	resp.RPCHeader, resp.Term, resp.Success, err = decodeVerdict("install snapshot response", answer)
	return err
}

// serveInstall takes a snapshot, or a chunk of one. With a manifest the pull comes first, because Raft's main loop is
// blocked from the moment it has the request.
func (t *Transport) serveInstall(in *peer.Inbound, part installPart) {
	if !t.installing.TryLock() {
		in.ReplyError(t.unavailable("install snapshot", errors.New("another snapshot is being installed")))
		return
	}
	defer t.installing.Unlock()
	resp, installed, err := t.install(in, part)
	if err != nil {
		t.cfg.Logger.Warn("snapshot not installed", "group", t.cfg.Group, "from", in.From, "error", err)
		in.ReplyError(err)
		return
	}
	in.Reply(encodeVerdict(resp.RPCHeader, resp.Term, resp.Success), nil)
	if installed && t.cfg.Installed != nil {
		t.cfg.Installed(part.req)
	}
}

func (t *Transport) install(in *peer.Inbound, part installPart) (resp *raft.InstallSnapshotResponse, installed bool, err error) {
	req := part.req
	if term := t.currentTerm(); req.Term < term {
		return &raft.InstallSnapshotResponse{Term: term}, false, nil // as the library says, but before anything was pulled for it
	}
	if t.cfg.Pull == nil {
		payload := in.TakePayload()
		content, err := t.chunks.add(in.From, part, payload)
		if err != nil || content == nil {
			return &raft.InstallSnapshotResponse{Term: t.currentTerm()}, false, err
		}
		return t.deliverInstall(req, io.MultiReader(content...), part.offset+uint64(len(payload)))
	}
	if held, err := t.holds(req); held || err != nil {
		return &raft.InstallSnapshotResponse{Term: t.currentTerm(), Success: held}, false, err
	}
	name, err := t.cfg.Pull(t.ctx, in.From, part.manifest, req)
	if err != nil {
		return nil, false, err
	}
	// Installed or not, and whatever the reason: what nobody will install must not keep its segments (I6). After an
	// install there is nothing to give up.
	if t.cfg.GiveUp != nil {
		defer t.cfg.GiveUp(name)
	}
	return t.deliverInstall(req, bytes.NewReader([]byte(name)), uint64(len(name)))
}

// holds reports whether the log, or the checkpoint, of this replica agrees with the leader's at the snapshot's index
// already. Then there is nothing to install, and what was acknowledged after that index must not be given up for it.
// It waits until the disk has what is confirmed.
func (t *Transport) holds(req *raft.InstallSnapshotRequest) (bool, error) {
	if t.cfg.Silent() {
		return false, t.unavailable("install snapshot", ErrSilent)
	}
	durable := make(chan error, 1)
	if !t.cfg.Gate(req.LastLogIndex, req.LastLogTerm, func(err error) { durable <- err }) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(t.ctx, snapshotSilence)
	defer cancel()
	select {
	case err := <-durable:
		return err == nil, err
	case <-ctx.Done():
		return false, t.unavailable("install snapshot", ctx.Err())
	}
}

func (t *Transport) deliverInstall(req *raft.InstallSnapshotRequest, content io.Reader, n uint64) (
	resp *raft.InstallSnapshotResponse, installed bool, err error) {
	req.Size = int64(n)
	out, err := t.deliver(t.ctx, raft.RPC{Command: req, Reader: content})
	if err != nil {
		return nil, false, err
	}
	resp = out.(*raft.InstallSnapshotResponse)
	return resp, resp.Success, nil
}

// add takes a chunk, which it keeps, and returns all of them with the last one. A chunk at offset 0 begins anew; others must continue
// what is there.
func (c *snapshotChunks) add(from storage.NodeID, part installPart, payload []byte) (whole []io.Reader, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if part.offset == 0 {
		c.dropLocked()
		c.id, c.from = part.stream, from
	}
	if part.stream != c.id || from != c.from || part.offset != uint64(c.bytes) || c.bytes+int64(len(payload)) > maxSnapshotBytes {
		return nil, storage.E("install snapshot", storage.KindInvalid, "", fmt.Errorf("a chunk at %d does not continue the %d bytes that came", part.offset, c.bytes))
	}
	if len(payload) == 0 && !part.last {
		return nil, storage.E("install snapshot", storage.KindInvalid, "", errors.New("an empty chunk that is not the last"))
	}
	c.content = append(c.content, payload)
	c.bytes += int64(len(payload))
	if !part.last {
		if c.timer == nil {
			c.timer = time.AfterFunc(snapshotSilence, c.drop)
		} else {
			c.timer.Reset(snapshotSilence)
		}
		return nil, nil
	}
	for _, b := range c.content {
		whole = append(whole, bytes.NewReader(b))
	}
	c.dropLocked()
	return whole, nil
}

func (c *snapshotChunks) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked()
}

func (c *snapshotChunks) dropLocked() {
	c.id, c.from, c.content, c.bytes = 0, 0, nil, 0
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}
