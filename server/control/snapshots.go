package control

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/crc32c"
)

// sealedSnapshots writes a snapshot's index, term and configuration also before its content, with a checksum. The library
// keeps them in a second file without a checksum, and compares nothing. Older snapshots have no such header and are read as
// they are. The layout is in docs/format/catalog.md.
type sealedSnapshots struct {
	raft.SnapshotStore
	dir        string             // where the snapshots lie; empty: in no files
	noteConfig func(index uint64) // told where the configuration of each snapshot lies that is opened
}

const (
	metaMagic      = "SDCATMET"
	metaFixedBytes = 8 + 4 + 4
	maxMetaBytes   = 1 << 20
)

func encodeMeta(index, term, configIndex uint64, c raft.Configuration) []byte {
	le := binary.LittleEndian
	var body []byte
	for _, n := range []uint64{index, term, configIndex} {
		body = le.AppendUint64(body, n)
	}
	body = append(body, raft.EncodeConfiguration(c)...)
	b := le.AppendUint32([]byte(metaMagic), uint32(len(body)))
	return append(le.AppendUint32(b, crc32c.Sum(body)), body...)
}

// Create implements raft.SnapshotStore.
func (s sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configIndex uint64,
	trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configIndex, trans)
	if err != nil {
		return nil, errors.Join(err, s.dropUnfinished(index, term))
	}
	if _, err := sink.Write(encodeMeta(index, term, configIndex, configuration)); err != nil {
		_ = sink.Cancel() // the first error counts
		return nil, err
	}
	return sink, nil
}

// dropUnfinished removes what a Create that failed has left.
func (s sealedSnapshots) dropUnfinished(index, term uint64) error {
	if s.dir == "" {
		return nil
	}
	return dropUnfinished(s.dir, fmt.Sprintf("%d-%d-", term, index))
}

// Open implements raft.SnapshotStore. KindCorrupt if what lies beside the snapshot is not what it was made with.
func (s sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, content, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	begin := make([]byte, metaFixedBytes)
	n, err := io.ReadFull(content, begin)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, nil, errors.Join(err, content.Close())
	}
	if n < metaFixedBytes || string(begin[:8]) != metaMagic {
		s.noteConfig(meta.ConfigurationIndex)
		return meta, joined{io.MultiReader(bytes.NewReader(begin[:n]), content), content}, nil
	}
	want := encodeMeta(meta.Index, meta.Term, meta.ConfigurationIndex, meta.Configuration)
	size := binary.LittleEndian.Uint32(begin[8:])
	body := make([]byte, min(size, maxMetaBytes))
	if _, err = io.ReadFull(content, body); err == nil && !bytes.Equal(slices.Concat(begin, body), want) {
		err = fmt.Errorf("index %d, term %d or the configuration at %d is not what the snapshot was made with", meta.Index, meta.Term,
			meta.ConfigurationIndex)
	}
	if err != nil {
		return nil, nil, storage.E("open", storage.KindCorrupt, "catalog snapshot "+id, errors.Join(err, content.Close()))
	}
	s.noteConfig(meta.ConfigurationIndex)
	trimmed := *meta
	trimmed.Size -= int64(len(want))
	return &trimmed, content, nil
}

// joined reads from one and closes another.
type joined struct {
	io.Reader
	io.Closer
}
