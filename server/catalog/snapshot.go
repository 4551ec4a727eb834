package catalog

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	storage "github.com/storaged/storaged"
)

// The layout of a snapshot is in docs/format/catalog.md.
const (
	snapshotMagic       = "SDCATLOG"
	snapshotHeaderBytes = 24
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// snapshotBody is the JSON in a snapshot; every list ascends by id.
type snapshotBody struct {
	Applied        uint64               `json:"applied"`
	Cluster        *Cluster             `json:"cluster,omitempty"`
	LastNode       storage.NodeID       `json:"last_node"`
	LastGroup      storage.GroupID      `json:"last_group"`
	LastVolume     storage.VolumeID     `json:"last_volume"`
	LastSession    storage.SessionID    `json:"last_session"`
	LastAttachment storage.AttachmentID `json:"last_attachment,omitempty"`
	Nodes          []storage.Node       `json:"nodes"`
	Groups         []storage.Group      `json:"groups"`
	Volumes        []storage.Volume     `json:"volumes"`
	Sessions       []Session            `json:"sessions"`
	Attachments    []storage.Attachment `json:"attachments,omitempty"`
	LastEvent      uint64               `json:"last_event,omitempty"`
	Events         []storage.Event      `json:"events,omitempty"`
}

// Snapshot returns the state's encoding: equal states have equal snapshots.
func (s *State) Snapshot() ([]byte, error) {
	b := snapshotBody{Applied: s.applied, LastNode: s.lastNode, LastGroup: s.lastGroup, LastVolume: s.lastVolume,
		LastSession: s.lastSession, Nodes: s.Nodes(), Groups: s.Groups(), Volumes: s.Volumes(), Sessions: s.Sessions(),
		LastAttachment: s.lastAttachment, Attachments: s.Attachments(), LastEvent: s.lastEvent, Events: s.Events()}
	if s.Initialised() {
		c := s.cluster
		b.Cluster = &c
	}
	body, err := json.Marshal(b)
	if err != nil {
		return nil, storage.E("encode catalog snapshot", storage.KindInternal, "", err)
	}
	if len(body) > MaxSnapshotBytes {
		return nil, storage.E("encode catalog snapshot", storage.KindInternal, "",
			fmt.Errorf("it has %d bytes, above the limit", len(body)))
	}
	out := make([]byte, snapshotHeaderBytes, snapshotHeaderBytes+len(body))
	copy(out, snapshotMagic)
	binary.LittleEndian.PutUint32(out[8:], b.version())
	binary.LittleEndian.PutUint32(out[12:], uint32(len(body)))
	binary.LittleEndian.PutUint32(out[16:], crc32.Checksum(body, castagnoli))
	binary.LittleEndian.PutUint32(out[20:], crc32.Checksum(out[:20], castagnoli))
	return append(out, body...), nil
}

// Restore reads a snapshot to its end. It checks everything it reads: a damaged snapshot is KindCorrupt, one of a
// later version KindUnsupported.
func Restore(r io.Reader) (*State, error) {
	fail := func(kind storage.Kind, format string, args ...any) (*State, error) {
		return nil, storage.E("read catalog snapshot", kind, "", fmt.Errorf(format, args...))
	}
	var h [snapshotHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return fail(storage.KindCorrupt, "header: %w", err)
	}
	if string(h[:8]) != snapshotMagic || crc32.Checksum(h[:20], castagnoli) != binary.LittleEndian.Uint32(h[20:]) {
		return fail(storage.KindCorrupt, "it does not begin with a snapshot's header")
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v < 1 || v > Version {
		return fail(storage.KindUnsupported, "version %d, this node knows 1 to %d; upgrade it", v, Version)
	}
	n := binary.LittleEndian.Uint32(h[12:])
	if n > MaxSnapshotBytes {
		return fail(storage.KindCorrupt, "it claims %d bytes, above the limit", n)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)+1)) // grows with what arrives, not with what is claimed
	if err != nil {
		return fail(storage.KindIO, "%w", err)
	}
	if len(body) != int(n) || crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(h[16:]) {
		return fail(storage.KindCorrupt, "%d bytes do not match their length or checksum", len(body))
	}
	var b snapshotBody
	if err := decodeStrict(body, &b); err != nil {
		return fail(storage.KindCorrupt, "%w", err)
	}
	s := b.state()
	if err := s.Check(); err != nil {
		return fail(storage.KindCorrupt, "%w", err)
	}
	return s, nil
}

// version returns the lowest version that has all that the body holds, and the version in force at least if one was put in force: who
// does not know it takes no part.
func (b *snapshotBody) version() uint32 {
	if b.Cluster != nil && b.Cluster.Version > BaseVersion {
		return max(uint32(b.Cluster.Version), b.lowest())
	}
	return b.lowest()
}

// lowest returns the lowest version that has all that the body holds.
func (b *snapshotBody) lowest() uint32 {
	if b.LastEvent != 0 {
		return EventsVersion
	}
	if slices.ContainsFunc(b.Nodes, func(n storage.Node) bool { return n.Intent != storage.IntentServe || !n.SilentSince.IsZero() }) {
		return IntentVersion
	}
	if slices.ContainsFunc(b.Volumes, func(v storage.Volume) bool { return len(v.Labels) > 0 }) {
		return 5
	}
	for _, a := range b.Attachments {
		if a.Access == storage.AccessReaders {
			return 4
		}
	}
	for _, g := range b.Groups {
		for _, r := range g.Replicas {
			if r.ConfigIndex != 0 {
				return 3
			}
		}
	}
	for _, v := range b.Volumes {
		if v.Limits != (storage.VolumeLimits{}) {
			return 2
		}
	}
	return 1
}

func (b *snapshotBody) state() *State {
	s := New()
	s.applied = b.Applied
	if b.Cluster != nil {
		s.cluster = *b.Cluster
	}
	s.lastNode, s.lastGroup, s.lastVolume, s.lastSession = b.LastNode, b.LastGroup, b.LastVolume, b.LastSession
	s.lastAttachment = b.LastAttachment
	s.lastEvent, s.events = b.LastEvent, b.Events
	for _, n := range b.Nodes {
		s.putNode(n)
	}
	for _, g := range b.Groups {
		s.putGroup(g)
	}
	for _, v := range b.Volumes {
		s.putVolume(v)
	}
	for _, x := range b.Sessions {
		s.putSession(x)
	}
	for _, a := range b.Attachments {
		s.putAttachment(a)
	}
	return s
}
