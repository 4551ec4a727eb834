package segment

import "sort"

// record is a record in memory: from its append until it is durable, and after that for as long as the cache keeps
// it. All fields are set by the append and not changed afterwards.
type record struct {
	header  recordHeader      // durable is not set; the committer knows it
	group   *GroupLog         // of an entry, else nil
	prefix  [prefixBytes]byte // of the payload of entries and data
	ext     []byte
	data    []byte
	appends int64 // the time of the append, as Log.now says it
	seg     *segmentFile
	follows bool // see Entry.Cold
	cold    bool // follows, and the data is large
	// blocks is how many bytes of blocks the data ends with, if they lie as direct I/O needs them; 0 otherwise. Whole pages.
	blocks int
	direct bool // blocks begin at a page of the file; set with the position
}

// dataAt is the position of the first byte of the data of an entry or a data record.
func (r *record) dataAt() Position {
	return r.header.position + Position(recordHeaderBytes+prefixBytes+len(r.ext)+int(r.header.padding))
}

// blocksAt is the position of the first byte of blocks.
func (r *record) blocksAt() Position { return r.dataAt() + Position(len(r.data)-r.blocks) }

// end is the position after the record.
func (r *record) end() Position { return r.header.position + Position(r.header.size()) }

// recordRing is a queue of records in position order. Places are numbered from 0 for ever: first <= i < next.
type recordRing struct {
	buf         []*record // length is a power of two
	first, next uint64
}

func (q *recordRing) at(i uint64) *record { return q.buf[i&uint64(len(q.buf)-1)] }

func (q *recordRing) push(r *record) {
	if n := uint64(len(q.buf)); q.next-q.first == n {
		grown := make([]*record, max(64, 2*n))
		for i := q.first; i < q.next; i++ {
			grown[i&uint64(len(grown)-1)] = q.at(i)
		}
		q.buf = grown
	}
	q.buf[q.next&uint64(len(q.buf)-1)] = r
	q.next++
}

func (q *recordRing) pop() *record {
	i := q.first & uint64(len(q.buf)-1)
	r := q.buf[i]
	q.buf[i] = nil
	q.first++
	return r
}

// find returns the record that holds the byte at p, or nil.
func (q *recordRing) find(p Position) *record {
	later := sort.Search(int(q.next-q.first), func(i int) bool { return q.at(q.first+uint64(i)).header.position > p })
	if later == 0 {
		return nil
	}
	if r := q.at(q.first + uint64(later) - 1); p < r.end() {
		return r
	}
	return nil
}
