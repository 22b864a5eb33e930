package pgwire

import (
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

//go:generate python3 saslprep_gen.py

// runeSet is a sorted list of ranges, both ends included.
type runeSet [][2]rune

func (s runeSet) has(r rune) bool {
	_, found := slices.BinarySearchFunc(s, r, func(span [2]rune, r rune) int {
		switch {
		case span[1] < r:
			return -1
		case span[0] > r:
			return 1
		}
		return 0
	})
	return found
}

// saslPrep prepares a password by RFC 4013 in the way of PostgreSQL's
// pg_saslprep and its callers, whose result a server's verifier was made from:
//
//   - a password that the profile prohibits, that is not UTF-8 or that nothing
//     remains of is used as the raw bytes it is, since PostgreSQL accepts
//     passwords in encodings that it cannot know;
//   - prohibited characters, unassigned code points and the order of
//     bidirectional text are looked for in the mapped string before its
//     normalization, where RFC 3454 (section 3) looks behind it.
func saslPrep(password string) string {
	if isASCII(password) || !utf8.ValidString(password) {
		return password
	}
	mapped := strings.Map(func(r rune) rune {
		switch {
		case nonASCIISpace.has(r):
			return ' '
		case mappedToNothing.has(r):
			return -1
		}
		return r
	}, password)
	if mapped == "" || !permitted(mapped) {
		return password
	}
	return norm.NFKC.String(mapped)
}

// permitted applies RFC 3454's sections 5, 6 and 7 to a string that is not
// empty.
func permitted(s string) bool {
	var rtl, ltr bool
	for _, r := range s {
		if prohibited.has(r) || unassigned.has(r) {
			return false
		}
		rtl = rtl || randALCat.has(r)
		ltr = ltr || lCat.has(r)
	}
	if !rtl {
		return true
	}
	first, _ := utf8.DecodeRuneInString(s)
	last, _ := utf8.DecodeLastRuneInString(s)
	return !ltr && randALCat.has(first) && randALCat.has(last)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
