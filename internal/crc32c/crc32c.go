// Package crc32c makes the crc32c of what is put together from the sums of its parts, so that data whose sums are known
// need not be read again. It keeps nothing and may be used by any number of goroutines.
package crc32c

import "hash/crc32"

// Table is the polynomial of every checksum of storaged.
var Table = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the crc32c of b.
func Sum(b []byte) uint32 { return crc32.Checksum(b, Table) }

// Update returns the crc32c of what has the sum c, followed by b.
func Update(c uint32, b []byte) uint32 { return crc32.Update(c, Table, b) }

// Joiner appends parts of one length. Its zero value is not usable.
type Joiner struct {
	// table[k][b] is what byte k of a sum, of value b, becomes when the part's length in zeroes follows. That is linear
	// in the sum's bits.
	table [4][256]uint32
}

// NewJoiner returns a Joiner for parts of n bytes.
func NewJoiner(n int) *Joiner {
	var j Joiner
	zeroes := make([]byte, n)
	for k := range j.table {
		for bit := range 8 {
			// crc32.Update inverts before and after; without that, zeroes are a linear map.
			j.table[k][1<<bit] = ^Update(^(uint32(1) << (8*k + bit)), zeroes)
		}
		for b := 1; b < 256; b++ {
			if low := b & -b; low != b {
				j.table[k][b] = j.table[k][low] ^ j.table[k][b^low]
			}
		}
	}
	return &j
}

// Join returns the crc32c of what has the sum a, followed by a part that has the sum b.
func (j *Joiner) Join(a, b uint32) uint32 {
	return j.table[0][byte(a)] ^ j.table[1][byte(a>>8)] ^ j.table[2][byte(a>>16)] ^ j.table[3][byte(a>>24)] ^ b
}
