package segment

import (
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
)

// AppendData appends a record of whole blocks that belong to no log: those that follow each other in an extent, and that repair
// received or compaction moved. It returns where the payload begins, and the position that must be durable for the record to be. The payload is kept
// by reference and must not be modified any more. No group needs the record: whoever refers to it keeps its segment
// from being recycled. Errors are those of GroupLog.Append.
func (l *Log) AppendData(h DataHeader, payload []byte) (data, end Position, err error) {
	size := alignedBytes(prefixBytes + len(payload))
	if len(payload) == 0 || len(payload) > maxPayloadBytes || size > l.cfg.maxRecordBytes() {
		return 0, 0, storage.E("append data", storage.KindInvalid, "group "+h.Group.String(),
			fmt.Errorf("%d bytes; a record has 1 to %d", len(payload), l.cfg.maxRecordBytes()-recordHeaderBytes-prefixBytes))
	}
	if n := len(payload) / storage.BlockSize; len(payload)%storage.BlockSize != 0 || int(h.FirstBlock)+n > storage.BlocksPerExtent {
		return 0, 0, storage.E("append data", storage.KindInvalid, "group "+h.Group.String(),
			fmt.Errorf("%d bytes from block %d of an extent on are no whole blocks of it", len(payload), h.FirstBlock))
	}
	r := &record{data: payload, prefix: h.encodePrefix()}
	sum := crc32.Update(crc32.Checksum(r.prefix[:], castagnoli), castagnoli, payload)
	r.header = recordHeader{kind: kindData, payload: uint32(prefixBytes + len(payload)),
		key: GroupKey{Group: h.Group}, index: uint64(h.Volume), sum: sum}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admitLocked(int64(size)); err != nil {
		return 0, 0, err
	}
	l.pushLocked(r, l.now())
	l.committed.Signal()
	return r.dataAt(), r.end(), nil
}
