"""Numbers of varying length: bytes for what is counted, bits for frequency tables."""

from __future__ import annotations

from compression.coding.damage import Damage

_MAX_VARINT = 2**53


class ByteReader:
    """Reads a part of a file from front to back.

    Args:
        data: The part.
        place: What it is, for messages, such as `stream 3`.
        offset: Where it begins in the file.
        short: Code of the error when there are too few bytes.
    """

    def __init__(self, data: memoryview, place: str, offset: int, *, short: str = "levity_corrupted") -> None:
        self._data = data
        self._short = short
        self._place = place
        self._offset = offset
        self._position = 0

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int = _MAX_VARINT) -> int:
        """An unsigned number, seven bits a byte, low ones first (LEB128), of at most `most`."""
        result = shift = 0
        while True:
            byte = self.byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 49:
                raise self.damage("a number of more than 53 bits")
        if result > most:
            raise self.damage(f"a number {result} where at most {most} is possible")
        return result

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.rest:
            what = f"{count} bytes are needed and {self.rest} are left"
            raise Damage(self._place, self._offset + self._position, what, self._short)
        part = self._data[self._position : self._position + count]
        self._position += count
        return part

    @property
    def rest(self) -> int:
        """Bytes that are not read yet."""
        return len(self._data) - self._position

    def end(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self.rest:
            raise self.damage(f"{self.rest} bytes too many")

    def damage(self, what: str) -> Damage:
        """An error that names the place."""
        return Damage(self._place, self._offset + self._position, what)


def varint(number: int) -> bytes:
    """The bytes that `ByteReader.varint` reads.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class BitWriter:
    """Bits, high ones first."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def bits(self, value: int, count: int) -> None:
        if count:
            self._parts.append(f"{value:0{count}b}")

    def gamma(self, value: int) -> None:
        """`value` from 0 on in 2 * floor(log2(value + 1)) + 1 bits (Elias 1975)."""
        self.bits(value + 1, 2 * (value + 1).bit_length() - 1)

    def rice(self, value: int, parameter: int) -> None:
        """`value` from 0 on: its upper part in unary, `parameter` lower bits as they are (Rice 1979)."""
        self._parts.append("1" * (value >> parameter) + "0")
        self.bits(value & (1 << parameter) - 1, parameter)

    def to_bytes(self) -> bytes:
        text = "".join(self._parts)
        size = (len(text) + 7) // 8
        return int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


class BitReader:
    """The other side of `BitWriter`."""

    def __init__(self, data: memoryview, place: str, offset: int) -> None:
        self._bits = bin(int.from_bytes(b"\1" + bytes(data), "big"))[3:]
        self._position = 0
        self._place = place
        self._offset = offset

    def bits(self, count: int) -> int:
        part = self._bits[self._position : self._position + count]
        if len(part) < count:
            raise self.damage("it ends too early")
        self._position += count
        return int(part, 2) if count else 0

    def gamma(self) -> int:
        zeros = self._bits.find("1", self._position) - self._position
        if not 0 <= zeros <= 32:
            raise self.damage("a number of more than 32 bits")
        self._position += zeros
        return self.bits(zeros + 1) - 1

    def rice(self, parameter: int) -> int:
        ones = self._bits.find("0", self._position) - self._position
        if not 0 <= ones <= 256:
            raise self.damage("a number that is too large")
        self._position += ones + 1
        return ones << parameter | self.bits(parameter)

    def end(self) -> None:
        """Refuse more than the zeros that fill the last byte."""
        if len(self._bits) - self._position > 7 or "1" in self._bits[self._position :]:
            raise self.damage("more bits than were written")

    def damage(self, what: str) -> Damage:
        return Damage(self._place, self._offset + self._position // 8, what)
