package pgwire

import (
	"testing"

	"golang.org/x/text/unicode/norm"
)

// TestSASLprep has the examples of RFC 4013, section 3, and PostgreSQL's
// departures from it.
func TestSASLprep(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing to do", "user", "user"},
		{"case is kept", "USER", "USER"},
		{"soft hyphen", "I\u00adX", "IX"},
		{"NFKC", "\u00aa", "a"},
		{"NFKC numeral", "\u2168", "IX"},
		{"decomposed", "e\u0301", "\u00e9"},
		{"no-break space", "a\u00a0b", "a b"},
		{"ASCII control stays", "\a", "\a"},
		{"right to left", "\u0627\u0628", norm.NFKC.String("\u0627\u0628")},
		{"mixed direction is raw", "\u0627\u0031\u00aa", "\u0627\u0031\u00aa"},
		{"right to left ends otherwise", "\u0627\u0031", "\u0627\u0031"},
		{"control in other text is raw", "\u2168\a", "\u2168\a"},
		{"private use is raw", "\u2168\ue000", "\u2168\ue000"},
		{"unassigned in 3.2 is raw", "\u2168\U0001f600", "\u2168\U0001f600"},
		{"not UTF-8 is raw", "\u2168\xff", "\u2168\xff"},
		{"nothing left is raw", "\u00ad", "\u00ad"},
		{"tag character is raw", "\u2168\U000e0041", "\u2168\U000e0041"},
	} {
		if got := saslPrep(tt.in); got != tt.want {
			t.Errorf("%s: %+q became %+q, want %+q", tt.name, tt.in, got, tt.want)
		}
	}
}

func TestRuneSet(t *testing.T) {
	for _, s := range []runeSet{nonASCIISpace, mappedToNothing, prohibited, randALCat, lCat, unassigned} {
		for i, span := range s {
			if span[0] > span[1] || i > 0 && s[i-1][1]+1 >= span[0] {
				t.Fatalf("range %x is not in order", span)
			}
			if !s.has(span[0]) || !s.has(span[1]) || s.has(span[1]+1) || s.has(span[0]-1) {
				t.Fatalf("range %x is not found", span)
			}
		}
	}
}
