package control

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/crc32c"
)

// The file in which the library keeps its log and votes has no checksums over what it holds. So entries and values are
// sealed on their way into it, and checked on their way out: docs/format/catalog.md. What was written before there was a seal
// has none, and is read as it is.

const (
	logSeal   = "SLOG"
	valueSeal = "SVAL"
	sealBytes = 4 + 4
)

// sumOfEntry covers all of an entry that the library decides by.
func sumOfEntry(l *raft.Log) uint32 {
	var head [17]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	return crc32c.Update(crc32c.Sum(head[:]), l.Data)
}

// sealEntry returns an entry with its seal, in the place that the library leaves to log stores.
func sealEntry(l *raft.Log) *raft.Log {
	sealed := *l
	sealed.Extensions = binary.LittleEndian.AppendUint32([]byte(logSeal), sumOfEntry(l))
	return &sealed
}

// unsealEntry checks and removes the seal of an entry that was read for an index.
func unsealEntry(index uint64, l *raft.Log) error {
	fail := func(text string) error {
		return storage.E("read", storage.KindCorrupt, fmt.Sprintf("entry %d of the catalog's log", index), errors.New(text))
	}
	switch {
	case l.Index != index:
		return fail(fmt.Sprintf("entry %d lies in its place", l.Index))
	case len(l.Extensions) == 0:
		return nil
	case len(l.Extensions) != sealBytes || string(l.Extensions[:4]) != logSeal:
		return fail("its seal cannot be read")
	case binary.LittleEndian.Uint32(l.Extensions[4:]) != sumOfEntry(l):
		return fail("its checksum does not match")
	}
	l.Extensions = nil
	return nil
}

// sealValue returns a term or a vote with its seal at the end.
func sealValue(key, val []byte) []byte {
	b := append(append(make([]byte, 0, len(val)+sealBytes), val...), valueSeal...)
	return binary.LittleEndian.AppendUint32(b, crc32c.Update(crc32c.Sum(key), val))
}

// unsealValue is the inverse of sealValue.
func unsealValue(key, b []byte) ([]byte, error) {
	n := len(b) - sealBytes
	if n <= 0 || string(b[n:n+4]) != valueSeal {
		return b, nil
	}
	if binary.LittleEndian.Uint32(b[n+4:]) != crc32c.Update(crc32c.Sum(key), b[:n]) {
		return nil, storage.E("read", storage.KindCorrupt, "the catalog's "+string(key), errors.New("its checksum does not match"))
	}
	return b[:n:n], nil
}

// unsealNumber is unsealValue for a number.
func unsealNumber(key, b []byte) (uint64, error) {
	v, err := unsealValue(key, b)
	if err == nil && len(v) != 8 {
		err = storage.E("read", storage.KindCorrupt, "the catalog's "+string(key), fmt.Errorf("a number of %d bytes", len(v)))
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil // as raft-boltdb writes numbers
}
